"""`ferflow models list | show | promote | rollback` -> what a person reads of the emotion models; another in use"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from models.emotion_classifier import DESCRIPTION_FILE, EmotionModel, read_description
from models.store import InstalledModel, ModelStore, Verdict

_CARD_FILE = "MODEL_CARD.md"
_IN_USE = "*"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The four actions and what each takes."""
    actions = parser.add_subparsers(metavar="ACTION", dest="action", required=True)
    actions.add_parser("list", help="every version: which is in use, how good it is, where it comes from")
    show = actions.add_parser("show", help="all that is known of one version")
    show.add_argument("model", metavar="VERSION", nargs="?", default="default", help="(the one in use)")
    promote = actions.add_parser("promote", help="take a version into use, or a model from a folder")
    promote.add_argument("model", metavar="VERSION-or-FOLDER")
    promote.add_argument("--reason", metavar="TEXT", default="", help="why, to be kept with it")
    actions.add_parser("rollback", help="go back to the version that was in use before")


def run(args: argparse.Namespace) -> int:
    """Do what was asked; 0 when it was done."""
    store = ModelStore()
    answers: dict[str, Callable[[], str]] = {
        "list": lambda: describe_versions(store.versions()),
        "show": lambda: _show(store, args.model),
        "promote": lambda: _promote(store, args.model, args.reason),
        "rollback": lambda: f"{store.rollback()} is in use again.",
    }
    sys.stdout.write(f"{_printable(answers[args.action]())}\n")
    return 0


def describe_versions(models: Sequence[InstalledModel]) -> str:
    """A table of the versions, the one in use marked."""
    head = ("", "version", "accuracy", "trained", "commit", "verdict")
    rows = [head, *(_row(model) for model in models)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, "", f"{_IN_USE} is in use. Accuracy: on the test images that each one names."])


def describe_model(model: InstalledModel) -> str:
    """What a person wants to know of a version."""
    description = model.description
    framing = description.framing
    origin = "came with ferflow" if model.is_shipped else "added here"
    trained = f"{f'on {description.saved_at} ' if description.saved_at else ''}by commit {description.commit or '?'}"
    facts = {
        "version": f"{description.version}{', in use' if model.is_in_use else ''}",
        "folder": str(model.path),
        "origin": f"{origin}; trained {trained}",
        "reads": f"grey crops of {description.crop_size_px} x {description.crop_size_px} pixels, "
        f"{framing.side_per_box:g} of the face's box{', eyes levelled' if framing.is_levelled else ''}",
        "written by": f"Keras {description.keras_version}",
        "trained on": f"data with sha256 {description.data.get('sha256', '?')}",
    }
    lines = [f"{name:<15}{value}" for name, value in facts.items()]
    measured_on = model.metrics()
    for split, metrics in measured_on.items():
        if isinstance(metrics, Mapping) and (measured := _measured(metrics)):
            lines.append(f"{split:<15}{measured}")
    recall = _mapping(_mapping(measured_on.get("test")).get("recall"))
    if recall:
        lines.append(f"{'recall':<15}{', '.join(f'{name} {_percent(value)}' for name, value in recall.items())}")
    if model.verdict is not None:
        lines += _describe_verdict(model.verdict)
    return "\n".join(lines)


def _show(store: ModelStore, name: str) -> str:
    folder = store.find(name)
    installed = next((model for model in store.versions() if model.path == folder), None)
    if installed is None:
        # A folder that was never added: what it says of itself, and whether it loads.
        EmotionModel(folder)
        installed = InstalledModel(
            path=folder, description=read_description(folder), is_in_use=False, is_shipped=False, verdict=None
        )
    card = folder / _CARD_FILE
    text = card.read_text(encoding="utf-8", errors="replace").strip() if card.is_file() else ""
    return "\n\n".join(filter(None, [describe_model(installed), text]))


def _promote(store: ModelStore, name: str, reason: str) -> str:
    if (Path(name) / DESCRIPTION_FILE).is_file():
        sys.stdout.write("Trying the model; this takes half a minute ...\n")
        sys.stdout.flush()
    folder = store.promote(name, reason=reason)
    lines = [f"{folder.name} is in use now; a run that is under way takes it at its next video."]
    verdict = next((model.verdict for model in store.versions() if model.path == folder), None)
    if verdict is not None and verdict.decision == "refused":
        lines.append(f"Note that it was refused when it was trained: {' '.join(verdict.reasons)}")
    lines.append("Videos analysed before are done anew when they are named again. `ferflow models rollback` goes back.")
    return "\n".join(lines)


def _row(model: InstalledModel) -> tuple[str, ...]:
    description, verdict = model.description, model.verdict
    return (
        _IN_USE if model.is_in_use else "",
        description.version,
        _percent(_mapping(model.metrics().get("test")).get("accuracy")),
        description.saved_at[:10] or "?",
        (description.commit or "?")[:8],
        "came with ferflow" if model.is_shipped else "" if verdict is None else verdict.decision,
    )


def _describe_verdict(verdict: Verdict) -> list[str]:
    day = verdict.decided_at.date().isoformat()
    lines = [f"{'verdict':<15}{verdict.decision} on {day}, compared with {verdict.compared_with}"]
    return lines + [f"{'':<15}{reason}" for reason in verdict.reasons]


def _measured(metrics: Mapping[str, Any]) -> str:
    parts = {
        "accuracy": _percent(metrics.get("accuracy")),
        "macro F1": _percent(metrics.get("macro_f1")),
        "calibration error": _percent(metrics.get("calibration_error")),
    }
    measured = ", ".join(f"{name} {value}" for name, value in parts.items() if value != "?")
    count = metrics.get("image_count")
    return f"{measured} ({count} images)" if measured and count else measured


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _percent(share: object) -> str:
    return f"{100 * share:.1f} %" if isinstance(share, float) and 0 <= share <= 1 else "?"


def _printable(text: str) -> str:
    """A stranger's model may hold texts that command a terminal; these become visible."""
    return "".join(sign if sign.isprintable() or sign == "\n" else repr(sign)[1:-1] for sign in text)
