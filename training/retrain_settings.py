"""configs/retrain.toml -> RetrainSettings: when a retraining starts, how gently it goes, what it must prove."""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from ferflow.config import load_toml
from ferflow.storage import place


class RetrainSettings(BaseModel):
    """How the model in use learns from newly labelled faces."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    labelled: Annotated[str, BeforeValidator(str)] = "labelled"
    """The folder, or s3://bucket/prefix, into which people sort faces: a folder for each emotion. It is not changed."""
    data: Path = Field(Path("fer2013"), examples=["/data/fer2013"])
    """The data that the model in use was trained on: some is learned again, its test images are the frozen test."""
    min_new_images: int = Field(100, ge=1)
    """Start from so many faces that no earlier candidate has seen."""
    holdout_share: float = Field(0.3, gt=0, lt=1)
    """Share of the new faces, all of a video or none, that is never learned: the candidate must prove itself on it."""
    replay_per_new: float = Field(8.0, ge=0)
    """Old training images that are learned again beside each labelled face, so that what was known is not forgotten."""
    kept_share: float = Field(0.6, ge=0, lt=1)
    """How much of the model in use is kept, answers and weights: more forgets less, and learns less of what is new."""
    epochs: int = Field(4, ge=1)
    """Passes over the images."""
    learning_rate: float = Field(5e-4, gt=0)
    """The highest: a higher one learns more of what is new, and forgets more."""
    batch_size: int = Field(64, ge=1)
    """Images in each step."""
    old_margin_points: float = Field(1.0, gt=0, le=100)
    """The candidate may lose so many points of accuracy on the frozen test, and must have lost less for certain."""
    significance: float = Field(0.05, gt=0, lt=0.5)
    """How likely chance alone may be to pass either test: 0.05 is 1 in 20."""
    settle_seconds: float = Field(30.0, ge=0)
    """Leave a file alone until it has not changed for so long: it may still be being copied."""
    watch_seconds: float = Field(60.0, gt=0)
    """How often a watch looks into the folder."""

    @property
    def labelled_name(self) -> str:
        """The last part of where labelled faces lie, for a run's name."""
        return place(self.labelled).name


def load_retrain_settings(path: Path | None, **changes: object) -> RetrainSettings:
    """Read the settings of a retraining; see `ferflow.config.load_toml`.

    Raises:
        ConfigError: the file is not there, is not TOML, has an unknown key or a value without meaning.
    """
    return load_toml(RetrainSettings, path, **changes)
