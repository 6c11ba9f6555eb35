"""`ferflow retrain` -> the model in use, fine-tuned on newly labelled faces; once, or whenever there are enough"""

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from flows.arguments import add_prefect, add_settings, given_settings
from flows.server import is_wanted, leave_logging_to_prefect

if TYPE_CHECKING:
    from training.retrain import Retraining
    from training.retrain_settings import RetrainSettings

_REFUSED, _INTERRUPTED = 1, 130

_PATIENCE = 10
# Looks that a watch leaves out after one that failed: finding out again may take seconds.


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes; an option for every setting, with its docstring as the help text."""
    from training.retrain_settings import RetrainSettings

    parser.add_argument("--config", metavar="FILE", type=Path, help="a TOML file like configs/retrain.toml")
    parser.add_argument(
        "--watch", action="store_true", help="look into the folder again and again, until it is stopped with Ctrl-C"
    )
    add_prefect(parser)
    add_settings(parser, RetrainSettings)


def run(args: argparse.Namespace) -> int:
    """Retrain; 0 when the candidate was promoted or there was too little new, 1 when it was refused."""
    from training.retrain_settings import RetrainSettings, load_retrain_settings

    settings = load_retrain_settings(args.config, **given_settings(args, RetrainSettings))
    on_server = is_wanted(args.prefect)
    if on_server:
        leave_logging_to_prefect()
    try:
        return _watch(settings, on_server=on_server) if args.watch else _once(settings, on_server=on_server)
    except KeyboardInterrupt:
        sys.stderr.write("ferflow: stopped; a retraining that was under way is gone on with by the same command.\n")
        return _INTERRUPTED


def _once(settings: "RetrainSettings", *, on_server: bool) -> int:
    from flows.training_report import describe_nothing_new, describe_retrained

    done = _retrain(settings, on_server=on_server) if _count(settings) >= settings.min_new_images else None
    if done is None:
        sys.stdout.write(f"{describe_nothing_new(_count(settings), settings)}\n")
        return 0
    sys.stdout.write(f"{describe_retrained(done)}\n")
    return 0 if done.verdict.decision == "promoted" else _REFUSED


def _watch(settings: "RetrainSettings", *, on_server: bool) -> int:
    """Go on until it is interrupted. What goes wrong is said once and tried again later, less often.

    A retraining that somebody cancelled, or that found nothing to learn, is begun again when another face is labelled.
    """
    from ferflow.errors import FerflowError, NothingToLearnError, StoppedError
    from flows.training_report import describe_retrained

    said, waits_at = "", 0
    sys.stderr.write(f"Watching {settings.labelled}; stop with Ctrl-C.\n")
    while True:
        count, done = 0, None
        try:
            count = _count(settings)
            if count >= settings.min_new_images and count != waits_at:
                done = _retrain(settings, on_server=on_server)
        except (FerflowError, OSError) as error:
            if isinstance(error, StoppedError | NothingToLearnError):
                waits_at = count
            if isinstance(error, StoppedError):
                sys.stderr.write(f"ferflow: {error} This watch does so as soon as another face is labelled.\n")
            elif str(error) != said:
                said = str(error)
                sys.stderr.write(f"ferflow: {said}\n")
            time.sleep(_PATIENCE * settings.watch_seconds)
            continue
        said = ""
        if done is not None:
            sys.stdout.write(f"{describe_retrained(done)}\n")
            sys.stdout.flush()
        time.sleep(settings.watch_seconds)


def _count(settings: "RetrainSettings") -> int:
    """Ask in this process, which costs next to nothing; a flow run for every look would cost seconds."""
    from models.store import ModelStore
    from training.retrain import count_new_images

    return count_new_images(settings, ModelStore())


def _retrain(settings: "RetrainSettings", *, on_server: bool) -> "Retraining | None":
    if on_server:
        from flows.retrain_emotion_model import retrain_on_server

        return retrain_on_server(settings)
    from flows.training_report import TrainingReport
    from models.store import ModelStore
    from training.retrain import retrain

    with TrainingReport() as report:
        return retrain(settings, ModelStore(), on_step=report.step)
