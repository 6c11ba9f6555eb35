"""the command line -> ferflow's commands: analyze, compact, demo, models, retrain, review, tables, train"""

import argparse
import importlib
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ferflow.errors import FerflowError
from ferflow.storage import absolute, place, printable
from flows.arguments import add_prefect, add_settings, given_settings, positive
from flows.server import is_wanted, leave_logging_to_prefect

if TYPE_CHECKING:
    from ferflow.config import Settings

EXIT_SOME_FAILED, EXIT_UNUSABLE, EXIT_INTERRUPTED = 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 all well, 1 some videos failed, 2 nothing could be done."""
    argv = list(sys.argv[1:] if argv is None else argv)
    args = _parser(argv).parse_args(argv)
    _set_up_logging(verbose=args.verbose)
    try:
        status: int = args.run(args)
    except FerflowError as error:
        print(f"ferflow: {printable(str(error))}", file=sys.stderr)
        return EXIT_UNUSABLE
    except OSError as error:
        # A full disk, a folder that was taken away: what is wrong is known, though not in whose file.
        print(f"ferflow: {printable(str(error))}", file=sys.stderr)
        return EXIT_UNUSABLE
    except KeyboardInterrupt:
        print("ferflow: stopped; finished videos are kept, the same command goes on with the others.", file=sys.stderr)
        return EXIT_INTERRUPTED
    return status


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ferflow", description="Finds faces in videos and tells which emotion each shows, frame by frame."
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, (summary, add_arguments, run) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        command.set_defaults(run=run)
        command.add_argument("-v", "--verbose", action="store_true", help="tell more of what is done")
        # A command's options are made of the settings, whose library takes longer to load than --help may.
        if argv[:1] == [name]:
            add_arguments(command)
    return parser


def _add_analyze_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "sources", metavar="SOURCE", nargs="+", type=place, help="a video, a folder of videos, or s3://..."
    )
    _add_run_arguments(parser, results=Path("results"))
    add_prefect(parser)


def _add_run_arguments(parser: argparse.ArgumentParser, *, results: Path) -> None:
    from ferflow.config import Settings

    parser.add_argument("--results", metavar="DIR", type=place, default=results, help="where to write (%(default)s)")
    parser.add_argument("--force", action="store_true", help="do again what has been done")
    parser.add_argument("--workers", metavar="N", type=positive, help="videos at a time (one for each processor)")
    parser.add_argument("--config", metavar="FILE", type=Path, help="a TOML file like configs/default.toml")
    add_settings(parser, Settings)


def _settings(args: argparse.Namespace) -> "Settings":
    from ferflow.config import Settings, load_settings

    return load_settings(args.config, **given_settings(args, Settings))


def _analyze(args: argparse.Namespace) -> int:
    return _analyze_under_prefect(args) if is_wanted(args.prefect) else _analyze_in_process(args, args.sources)


def _analyze_under_prefect(args: argparse.Namespace) -> int:
    from ferflow.sources import find_videos, open_results

    settings = _settings(args)
    videos = find_videos(args.sources)
    results = open_results(args.results)
    leave_logging_to_prefect()
    from flows.analyze_videos import analyze_on_server
    from flows.report import Report

    sources = [str(absolute(source)) for source in args.sources]
    report = Report(len(videos))
    for job, summary in analyze_on_server(
        sources, str(results.root), settings=settings, force=args.force, workers=args.workers
    ):
        if job.is_elsewhere:
            report.elsewhere(job)
        elif summary is None:
            report.copied(job)
        else:
            report.finished(job, summary)
    print(report.conclusion(results))
    return EXIT_SOME_FAILED if report.failed else 0


def _analyze_in_process(args: argparse.Namespace, sources: Sequence[Path]) -> int:
    from ferflow.sources import find_videos, open_results

    settings = _settings(args)
    videos = find_videos(sources)
    results = open_results(args.results)
    from flows.each_video import default_workers
    from flows.in_process import analyze_in_process
    from flows.report import Report

    workers = args.workers or default_workers()
    with Report(len(videos)) as report:
        analyze_in_process(videos, results, settings=settings, force=args.force, workers=workers, listener=report)
    print(report.conclusion(results))
    return EXIT_SOME_FAILED if report.failed else 0


def _add_demo_arguments(parser: argparse.ArgumentParser) -> None:
    _add_run_arguments(parser, results=Path("demo") / "results")


def _demo(args: argparse.Namespace) -> int:
    from ferflow.sample import make_sample_clip

    clip = args.results.parent / "two_people.mp4"
    make_sample_clip(clip)
    status = _analyze_in_process(args, [clip])

    import pandas as pd

    from ferflow.records import Segment
    from ferflow.summary import describe_segment

    print("\nWhat was seen:")
    segments = pd.read_parquet(args.results / "segments")[list(Segment.__dataclass_fields__)]
    for row in segments.itertuples(index=False):
        print(f"  {describe_segment(Segment(*row))}")
    faces = pd.read_parquet(args.results / "faces")
    print(f"\npandas.read_parquet({str(args.results / 'faces')!r}), {len(faces)} rows, five of them:")
    columns = ["frame_index", "pts_seconds", "track_id", "x_min", "y_min", "happy", "neutral", "emotion"]
    some = faces[columns].iloc[:: max(len(faces) // 5, 1)].head(5)
    print(some.to_string(index=False, float_format="{:.2f}".format))
    print("\nFiles:")
    for path in [clip, *sorted(args.results.glob("[!.]*/*"))]:
        print(f"  {path}")
    return status


class _OneLine(logging.Formatter):
    """Shows of a message what a terminal would take for a command."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))


def _set_up_logging(*, verbose: bool) -> None:
    shown = logging.StreamHandler(sys.stderr)
    shown.setFormatter(_OneLine("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[shown])
    logging.getLogger("ferflow").setLevel(logging.INFO if verbose else logging.WARNING)


def _tables(args: argparse.Namespace) -> int:
    from ferflow.rows import describe_tables

    print(describe_tables())
    return 0


_AddArguments = Callable[[argparse.ArgumentParser], None]
_Run = Callable[[argparse.Namespace], int]


def _of(module: str) -> tuple[_AddArguments, _Run]:
    """The two functions of a command that has a module of its own, which is loaded when it is called."""

    def add_arguments(parser: argparse.ArgumentParser) -> None:
        importlib.import_module(module).add_arguments(parser)

    def run(args: argparse.Namespace) -> int:
        status: int = importlib.import_module(module).run(args)
        return status

    return add_arguments, run


COMMANDS: dict[str, tuple[str, _AddArguments, _Run]] = {
    "analyze": (
        "find faces and their emotions in videos, write tables and annotated videos",
        _add_analyze_arguments,
        _analyze,
    ),
    "compact": (
        "merge the many small table files of past days into a few big ones",
        *_of("flows.compact_command"),
    ),
    "demo": ("make a short clip, analyse it and show what comes out", _add_demo_arguments, _demo),
    "models": ("list the emotion models, take one into use, go back", *_of("flows.models_command")),
    "retrain": (
        "fine-tune the model in use on newly labelled faces, promote what comes out if it is better",
        *_of("flows.retrain_command"),
    ),
    "review": ("pick the faces that a person should label next, as pictures to sort", *_of("flows.review_command")),
    "serve": ("offer what can be started from Prefect's page, and run it here", *_of("flows.serve_command")),
    "tables": ("list the tables and what their columns mean", lambda parser: None, _tables),
    "train": ("train an emotion model on labelled faces", *_of("flows.train_command")),
    "up": (
        "start the pages and the watcher: what is dropped there or copied into inbox/ is analysed",
        *_of("flows.up_command"),
    ),
    "view": ("open the page on which videos are dropped and looked at", *_of("flows.view_command")),
    "watch": ("analyse videos that arrive in a folder or a bucket, until Ctrl-C", *_of("flows.watch_command")),
}

if __name__ == "__main__":
    sys.exit(main())
