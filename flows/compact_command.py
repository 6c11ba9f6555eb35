"""`ferflow compact` -> few big table files instead of many small ones, in this process or as a Prefect flow"""

import argparse
import sys

from flows.arguments import add_prefect
from flows.server import is_wanted, leave_logging_to_prefect


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument(
        "--results", metavar="DIR", default="results", help="folder or bucket with the tables (%(default)s)"
    )
    parser.add_argument(
        "--older-than-days",
        metavar="N",
        type=_days,
        default=1,
        help="1 merges all days before today, 2 those before yesterday, 0 today's too; days are those of UTC "
        "(%(default)s)",
    )
    add_prefect(parser)


def run(args: argparse.Namespace) -> int:
    """Merge; 0 also if there was nothing to do."""
    sys.stdout.write(f"{_under_prefect(args) if is_wanted(args.prefect) else _in_process(args)}\n")
    return 0


def _in_process(args: argparse.Namespace) -> str:
    from ferflow.compaction import compact
    from flows.compact_report import describe_compacted, results_at

    results = results_at(args.results)
    compacted = compact(results, older_than_days=args.older_than_days) if results else None
    for sentence in compacted.left if compacted else ():
        sys.stderr.write(f"{sentence}\n")
    return describe_compacted(args.results, results, compacted)


def _under_prefect(args: argparse.Namespace) -> str:
    leave_logging_to_prefect()
    from flows.compact_results import compact_on_server

    return compact_on_server(args.results, args.older_than_days)


def _days(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError("must be 0 or more")
    return value
