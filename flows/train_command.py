"""`ferflow train` -> a model directory and pictures of its training, in this process or as a Prefect flow"""

import argparse
import sys
from pathlib import Path
from typing import get_args

from flows.arguments import add_prefect, local_path
from flows.server import is_wanted, leave_logging_to_prefect
from training.dataset import Leaks

_INTERRUPTED = 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument(
        "data",
        metavar="DATA",
        type=local_path,
        help="labelled faces: a folder of train/<emotion>/ and test/<emotion>/ or of <emotion>/ alone, an archive of "
        "one, fer2013.csv, or a CSV or Parquet table of path and label",
    )
    parser.add_argument("--config", metavar="FILE", type=Path, help="a TOML file like configs/train.toml, the default")
    parser.add_argument(
        "--out", metavar="DIR", type=local_path, default=Path("runs"), help="where to write (%(default)s)"
    )
    parser.add_argument(
        "--leaks",
        choices=get_args(Leaks),
        default="refuse",
        help="what to do about training images that are also held out (%(default)s)",
    )
    add_prefect(parser)


def run(args: argparse.Namespace) -> int:
    """Train; 0 when the model is there."""
    from flows.training_report import describe_trained
    from training.fit import FIGURES

    try:
        directory = _under_prefect(args) if is_wanted(args.prefect) else _in_process(args)
    except KeyboardInterrupt:
        sys.stderr.write("ferflow: stopped; the same command goes on after the last finished epoch.\n")
        return _INTERRUPTED
    sys.stdout.write(f"{describe_trained(directory)}\nPictures of the training are in {args.out / FIGURES}.\n")
    return 0


def _in_process(args: argparse.Namespace) -> Path:
    from flows.training_report import TrainingReport
    from training.fit import train

    with TrainingReport() as report:
        return train(args.data, args.config, args.out, leaks=args.leaks, on_step=report.step)


def _under_prefect(args: argparse.Namespace) -> Path:
    leave_logging_to_prefect()
    from flows.train_emotion_model import train_on_server

    return train_on_server(args.data, args.config, args.out, leaks=args.leaks)
