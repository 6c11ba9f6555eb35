"""tests marked `fault("...")` -> a table of what was done to the pipeline and what was lost, under `make faults`"""

import os

import pytest

IS_WHOLE = os.environ.get("FAULTS") == "all"
"""Whether the whole suite is asked for, and not its quick part."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fault(what): does to the pipeline what the world does; in `make faults`")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if (mark := item.get_closest_marker("fault")) is not None:
            item.user_properties.append(("fault", mark.args[0]))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not IS_WHOLE:
        return
    rows = []
    for outcome in ("passed", "failed", "skipped", "error"):
        for report in terminalreporter.getreports(outcome):
            told = dict(report.user_properties)
            if "fault" in told and (report.when == "call" or outcome != "passed"):
                figures = told.get("figures", "") if outcome == "passed" else outcome.upper()
                rows.append((told["fault"], figures or "nothing lost"))
    terminalreporter.section("what the pipeline survives")
    width = max((len(fault) for fault, _ in rows), default=0)
    for fault, figures in rows:
        terminalreporter.write_line(f"{fault:{width}}  {figures}")
