"""tests marked `fault("...")` -> a table of what was done to the pipeline and what was lost, under `make faults`"""

import os
from collections import Counter

import pytest

IS_WHOLE = os.environ.get("FAULTS") == "all"
"""Whether the whole suite is asked for, and not its quick part."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fault(what, holds): does what the world does to a pipeline; in `make faults`")


def name_faults(items: list[pytest.Item]) -> None:
    """What the mark of a test says goes with its report, also from another process.

    What a test counted is its property `figures`; what its mark says to hold is asserted, and not counted.
    """
    for item in items:
        if (mark := item.get_closest_marker("fault")) is not None:
            item.user_properties += zip(("fault", "holds"), mark.args, strict=False)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not IS_WHOLE:
        return
    rows: Counter[tuple[str, str]] = Counter()
    for outcome in ("passed", "failed", "skipped", "error"):
        for report in terminalreporter.getreports(outcome):
            told = dict(report.user_properties)
            if "fault" in told and (report.when == "call" or outcome != "passed"):
                rows[told["fault"], _figures(told) if outcome == "passed" else outcome.upper()] += 1
    terminalreporter.section("what the pipeline survives")
    width = max((len(fault) for fault, _ in rows), default=0)
    for (fault, figures), count in rows.items():
        terminalreporter.write_line(f"{fault:{width}}  {f'{count} times: ' if count > 1 else ''}{figures}")


def _figures(told: dict[str, object]) -> str:
    if "figures" in told:
        return str(told["figures"])
    return f"passed, nothing counted; asserted: {told['holds']}" if "holds" in told else "passed, nothing counted"
