"""configs/watch.toml -> WatchSettings: where new videos arrive, when they are whole, what becomes of them."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from ferflow.config import Settings, load_settings, load_toml

TOLD_TO_VIEWER = "FERFLOW_VIEW"
"""The environment variable in which `ferflow view` hands these settings to the page's process, as JSON."""


class WatchSettings(BaseModel):
    """How new videos are found and handed to the analysis."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    sources: Annotated[list[str], Field(min_length=1)] = ["inbox"]
    """Where new videos arrive, with all folders below: folders, or buckets such as s3://bucket/prefix."""
    results: str = "results"
    """Where to write, a folder or a bucket; what is done is known from it alone."""
    after: Literal["leave", "move"] = "leave"
    """What happens to a video that has been dealt with: nothing, or it is moved out of the way."""
    done_folder: str = "done"
    """With `after = "move"`: where analysed videos and copies of them go, beside the source or with a whole path."""
    failed_folder: str = "failed"
    """With `after = "move"`: where videos go that cannot be analysed."""
    settle_seconds: float = Field(2.0, ge=0)
    """A file is whole when its length and time have not changed for so long; in a bucket it always is."""
    second_look_seconds: float = Field(30.0, ge=0)
    """A file that ends before its own end, or does not tell it (as TS), may be on its way: wait so long for more."""
    sweep_seconds: float = Field(60.0, gt=0)
    """How often to look through whole folders, for what no file event told; network drives tell of none."""
    bucket_seconds: float = Field(3.0, gt=0)
    """How often to list a bucket. Stores charge for it: one request for each 1,000 objects in it, each time."""
    videos_per_run: int = Field(200, ge=1)
    """The most videos in one run; more become several. With a deployment take few, so that all workers get some."""
    workers: int = Field(0, ge=0)
    """Videos at a time in a run; 0 is one for each processor."""
    redo_outdated: bool = False
    """Analyse again what was analysed with another model, or with other settings than those below."""
    deployment: str = ""
    """Analyse on the workers of a Prefect deployment, such as analyze-videos/analyze-videos; empty: in this process."""
    ray: str = ""
    """Carry the analysis out on a Ray cluster, such as ray://head:10001 (`uv sync --extra ray`); empty: not."""
    max_upload_mb: int = Field(1000, ge=1)
    """The page takes no larger file than this many megabytes; larger ones are copied into the inbox."""
    page_names: list[str] = []
    """Names that the page answers to beside localhost and this machine's numbers, such as videos.example.org."""
    settings: Settings = load_settings(None)
    """The settings of the analysis, as in default.toml."""


def load_watch_settings(path: Path | None, **changes: object) -> WatchSettings:
    """Read the settings of a watch; see `ferflow.config.load_toml`.

    Raises:
        ConfigError: the file is not there, is not TOML, has an unknown key or a value without meaning.
    """
    return load_toml(WatchSettings, path, **changes)
