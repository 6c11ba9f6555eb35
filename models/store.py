"""name of an emotion model -> the folder that holds it; which one is in use."""

from pathlib import Path

from ferflow.errors import ModelError

_INSTALLED = Path(__file__).parent / "emotion"
_IN_USE = _INSTALLED / "in_use"


def find_model(name: str) -> Path:
    """The folder of a model.

    Args:
        name: `default` for the one in use, the version of an installed one, or the path of a model's folder.

    Raises:
        ModelError: there is no such model.
    """
    if name == "default":
        try:
            return _INSTALLED / _IN_USE.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ModelError(
                f"{_IN_USE}: the emotion model that comes with ferflow is missing; install it again."
            ) from error
    for folder in (_INSTALLED / name, Path(name)):
        if (folder / "model.json").is_file():
            return folder
    installed = ", ".join(sorted(path.parent.name for path in _INSTALLED.glob("*/model.json")))
    raise ModelError(f"{name}: there is no emotion model of this name or in this folder; installed: {installed}.")
