"""what several commands take -> their options, declared once"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import BaseModel


def add_prefect(parser: argparse.ArgumentParser) -> None:
    """The choice between a flow and this process alone."""
    parser.add_argument(
        "--prefect",
        action=argparse.BooleanOptionalAction,
        help="run as a Prefect flow, on the server that PREFECT_API_URL names; this is the default where that is set",
    )


def add_places(parser: argparse.ArgumentParser) -> None:
    """Where videos come from and where results go, for who watches or serves."""
    parser.add_argument("--config", metavar="FILE", type=Path, help="a TOML file like configs/watch.toml")
    parser.add_argument(
        "--inbox",
        metavar="DIR",
        nargs="+",
        help="where new videos arrive: folders, or buckets such as s3://bucket/prefix (inbox)",
    )
    parser.add_argument("--results", metavar="DIR", help="where to write, a folder or a bucket (results)")


def add_settings(parser: argparse.ArgumentParser, settings: "type[BaseModel]") -> None:
    """An option for every setting, with its docstring as the help text."""
    group = parser.add_argument_group("settings", "each wins over the same setting in --config")
    for name, field in settings.model_fields.items():
        option = f"--{name.replace('_', '-')}"
        help_text = f"{field.description} ({field.default})".replace("%", "%%")
        if field.annotation is bool:
            group.add_argument(option, action=argparse.BooleanOptionalAction, help=help_text)
        else:
            group.add_argument(option, metavar="VALUE", type=type(field.default), help=help_text)


def given_settings(args: argparse.Namespace, settings: "type[BaseModel]") -> dict[str, Any]:
    """What was given for each setting; None where nothing was."""
    return {name: getattr(args, name) for name in settings.model_fields}


def local_path(text: str) -> Path:
    """Read a folder or file that must be of this machine."""
    from ferflow.storage import is_local, place

    if not is_local(path := place(text)):
        raise argparse.ArgumentTypeError(f"{text}: this must lie on this machine; a bucket will not do")
    return path


def positive(text: str) -> int:
    """Read a whole number of 1 or more."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value
