"""configs/*.toml -> Settings: everything a user can set, read once at the entry."""

import difflib
import hashlib
import tomllib
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ferflow.errors import ConfigError
from ferflow.limits import DEFAULT_LIMITS, Limits

_Model = TypeVar("_Model", bound=BaseModel)

LIMITS = {"max_megapixels", "max_frames", "max_memory_gb", "max_seconds_per_frame", "patience_seconds"}
"""Settings that decide whether a video is analysed, not what comes out: results made under other limits stand."""

_RESULT_VERSION = 2
# Raise it when a change of the code changes results that are already there: then they are made anew.


class Settings(BaseModel):
    """What the result of an analysis depends on, beside the video and the model's weights; and what it may take."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    model: str = "default"
    """The emotion model: `default` is the one in use, see `ferflow models`; or a version, or the folder of another."""
    max_fps: float = Field(0.0, ge=0)
    """Look at no more than this many frames of each second, for long recordings; 0 looks at every frame."""
    annotate: bool = True
    """Write a copy of each video with boxes and labels drawn."""
    annotated_short_side_px: int = Field(1080, ge=0)
    """Scale the annotated video down to this short side, in pixels; 0 keeps every size."""
    smoothing_seconds: float = Field(0.5, ge=0)
    """Average the scores of a face over this time before naming its emotion in segments and labels."""
    min_segment_seconds: float = Field(0.4, ge=0)
    """Take a shorter flicker of another emotion for noise."""
    max_megapixels: float = Field(DEFAULT_LIMITS.max_megapixels, gt=0)
    """Refuse a video whose picture has more than this many million pixels; one of 8K has 33."""
    max_frames: int = Field(DEFAULT_LIMITS.max_frames, gt=0)
    """Refuse a video of more frames than this; a day at 50 a second has 4.3 million."""
    max_memory_gb: float = Field(8.0, gt=0)
    """Give up a video that takes more than this many gigabytes of memory."""
    max_seconds_per_frame: float = Field(10.0, gt=0)
    """Give up a video that takes more than this many seconds a frame, on average over what was done of it."""
    patience_seconds: float = Field(120.0, gt=0)
    """Give up a video of which nothing has come for this many seconds."""

    @property
    def limits(self) -> Limits:
        """What a video may claim."""
        return Limits(max_megapixels=self.max_megapixels, max_frames=self.max_frames)

    @property
    def settings_hash(self) -> str:
        """Names these settings: results made with equal ones are not made again. The model counts by its version."""
        content = self.model_dump_json(exclude={"model", *LIMITS})
        return hashlib.sha256(f"{_RESULT_VERSION}:{content}".encode()).hexdigest()[:12]


def load_settings(path: Path | None, **changes: object) -> Settings:
    """Read the settings of an analysis, see `load_toml`."""
    return load_toml(Settings, path, **changes)


def load_toml(kind: type[_Model], path: Path | None, **changes: object) -> _Model:
    """Read settings from a TOML file.

    Args:
        kind: which settings; every one has a default.
        path: the file, or None for the defaults.
        changes: single settings that win over the file's; None changes nothing.

    Raises:
        ConfigError: the file is not there, is not TOML, has an unknown key or a value without meaning.
    """
    where = "the settings" if path is None else str(path)
    try:
        values = {} if path is None else tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{where}: the settings file cannot be read ({error.strerror}).") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where}: this is not a TOML file: {error}.") from error
    values |= {name: value for name, value in changes.items() if value is not None}
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(where, kind, problem) for problem in error.errors())) from error


def _explain(where: str, kind: type[BaseModel], problem: object) -> str:
    assert isinstance(problem, dict)
    name = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        close = difflib.get_close_matches(name, kind.model_fields, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(kind.model_fields)}."
        return f"{where}: there is no setting {name}; {hint}"
    return f"{where}: {name} = {problem['input']!r} has no meaning: {problem['msg'].lower()}."
