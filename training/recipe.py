"""TOML file -> Recipe: every choice of a training, read once, unknown keys refused."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from ferflow.errors import ConfigError
from ferflow.faces import Framing
from models.emotion_cnn import BODIES
from training.augment import Augmentation

DEFAULT_RECIPE = Path(__file__).parents[1] / "configs" / "train.toml"
"""What a training does where no other recipe is named."""

_OPTIMIZERS = ("muon", "adamw", "adam")
_DECAYS = ("cosine", "plateau")
OWN_STARTS = ("scratch", "face_network")
"""What a network may start from other than a model."""
_KEEPS = ("last", "best")
_PRECISIONS = ("auto", "mixed_bfloat16", "mixed_float16", "float32")


@dataclass(frozen=True, slots=True)
class Network:
    """Shape of the network, see `models.emotion_cnn.build_emotion_cnn`, and what it starts from."""

    kind: str
    """`mobile`, `residual` or `sequential`."""
    start: str
    """`scratch`; `face_network`, the weights of a network that tells faces apart (`mobile` only); or an emotion model
    of the same shape, by its version or directory."""
    widths: tuple[int, ...]
    """Channels at full resolution and after each halving."""
    blocks: tuple[int, ...]
    """Residual blocks at each of these resolutions."""
    dropout: float
    """Share of the pooled features dropped while training."""


@dataclass(frozen=True, slots=True)
class Targets:
    """What the network is asked to answer."""

    votes_share: float
    """Weight of the crowd's votes beside the label, 0 to 1."""
    smoothing: float
    """Share of the answer spread over all classes."""
    teachers: tuple[str, ...]
    """Emotion models, by version or directory, whose mean answer is mixed in: see `training.teachers`."""
    teachers_share: float
    """Weight of the teachers' answer beside all of the above, 0 to 1."""
    least_recall: float
    """After the training, rare answers are favoured until this share of each class's validation images is found."""
    votes_head: float = 0.0
    """Weight of a second answer, the crowd's votes alone, that is learned beside it and not saved; 0 learns none."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long, how fast, in what order."""

    seed: int
    """Where all chance starts: weights, order, augmentation."""
    epochs: int
    """Passes over the training images."""
    batch_size: int
    """Images a step."""
    optimizer: str
    """`muon` (convolutions by Muon, the rest by AdamW), `adamw` or `adam`."""
    learning_rate: float
    """The highest; with a cosine it is reached after the warm-up."""
    decay: str
    """`cosine` down to zero at the end, or `plateau`: halved when the validation loss has stopped falling."""
    patience_epochs: int
    """How long `plateau` waits for the validation loss to fall."""
    stop_epochs: int
    """Stop when the validation loss has not fallen for so many epochs; 0 goes on to the end."""
    keep: str
    """Whose weights are kept: the `last` epoch's, or those of the `best`, the one of least validation loss."""
    warmup_epochs: float
    """Epochs of linear rise to the peak."""
    weight_decay: float
    """Pull of the weights to zero, times the learning rate, a step; not with `adam`."""
    average_decay: float
    """The weights used are an average over the last steps; what each step keeps of it. 0 uses the last step's."""
    sizes_px: tuple[int, ...]
    """Side of the crops, from the first part of the training to the last; the last must be 48."""
    size_shares: tuple[float, ...]
    """Share of the epochs at each of these sides; together 1."""
    precision: str
    """`auto` (what the machine does fastest), `mixed_bfloat16`, `mixed_float16` or `float32`."""
    start_share: float = 0.0
    """Share of the starting model's weights in those that are kept: their weighted mean."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides what comes out of a training, but the data."""

    name: str
    """First part of the model's version."""
    network: Network
    targets: Targets
    schedule: Schedule
    augmentation: Augmentation
    framing: Framing


def load_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Raises:
        ConfigError: there is no such file, it is no TOML, a key is unknown or missing, or a value has no meaning. The
            message names file, key and, for an unknown key, the nearest valid one.
    """
    try:
        with path.open("rb") as file:
            table = tomllib.load(file)
    except OSError as error:
        raise ConfigError(
            f"{path}: it cannot be read ({error.strerror}). Give a recipe such as configs/train.toml."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: it is not valid TOML: {error}.") from error
    return parse_recipe(table, path)


def parse_recipe(table: dict[str, Any], path: Path) -> Recipe:
    """Read a recipe that stands in a table, as `load_recipe` does; `path` is the file that it is from.

    Raises:
        ConfigError: a key is unknown or missing, or a value has no meaning.
    """
    recipe: Recipe = _read(Recipe, table, path, "")
    _check(recipe, path)
    return recipe


def _read(kind: type, table: dict[str, Any], path: Path, prefix: str) -> Any:
    """Build one dataclass from one TOML table, its nested ones from the tables inside.

    Settings that have a default came later than the first models; what these were made by does not name them.
    """
    hints = get_type_hints(kind)
    for key in table:
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1, cutoff=0)[0]
            raise ConfigError(f"{path}: there is no setting '{prefix}{key}'. The nearest one is '{prefix}{near}'.")
    values = {}
    for field in dataclasses.fields(kind):
        key = prefix + field.name
        if field.name not in table:
            if field.default is not dataclasses.MISSING:
                continue
            raise ConfigError(f"{path}: the setting '{key}' is missing. Copy it from configs/train.toml.")
        values[field.name] = _convert(hints[field.name], table[field.name], path, key)
    return kind(**values)


def _convert(kind: Any, value: Any, path: Path, key: str) -> Any:
    if dataclasses.is_dataclass(kind):
        if isinstance(value, dict):
            return _read(kind, value, path, f"{key}.")  # type: ignore[arg-type]
    elif kind is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    elif kind in (tuple[int, ...], tuple[float, ...], tuple[str, ...]):
        (member, _) = get_args(kind)
        if isinstance(value, list):
            return tuple(_convert(member, item, path, key) for item in value)
    elif isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    names = {tuple[str, ...]: "list of names", tuple[int, ...]: "list of numbers", tuple[float, ...]: "list of numbers"}
    wanted = names.get(kind) or getattr(kind, "__name__", str(kind))
    raise ConfigError(f"{path}: '{key}' is {value!r}, but it must be a {wanted}.")


def _check(recipe: Recipe, path: Path) -> None:
    schedule, targets, network, how = recipe.schedule, recipe.targets, recipe.network, recipe.augmentation
    shares = {
        "targets.votes_share": targets.votes_share,
        "targets.smoothing": targets.smoothing,
        "targets.teachers_share": targets.teachers_share,
        "targets.least_recall": targets.least_recall,
        "network.dropout": network.dropout,
        "schedule.average_decay": schedule.average_decay,
        "schedule.start_share": schedule.start_share,
        "augmentation.mirror": how.mirror,
        "augmentation.erase": how.erase,
        "augmentation.degrade": how.degrade,
        "augmentation.surroundings": how.surroundings,
    }
    demands = [(f"{key} must lie between 0 and 1", 0 <= value <= 1) for key, value in shares.items()]
    demands += [
        (f"network.kind must be one of {', '.join(BODIES)}", network.kind in BODIES),
        (
            "network.start may be 'face_network' for a mobile network only",
            network.start != "face_network" or network.kind == "mobile",
        ),
        (
            "schedule.start_share must be 0 for a network that starts from no model",
            not schedule.start_share or network.start not in OWN_STARTS,
        ),
        (
            "targets.teachers must name a model where teachers_share is above 0",
            bool(targets.teachers) or not targets.teachers_share,
        ),
        ("name must be letters, digits, '-' and '_'", recipe.name.replace("-", "").replace("_", "").isalnum()),
        ("network.widths and network.blocks must be equally long", len(network.widths) == len(network.blocks) > 0),
        ("targets.votes_head must not be below 0", targets.votes_head >= 0),
        ("schedule.epochs and schedule.batch_size must be at least 1", min(schedule.epochs, schedule.batch_size) >= 1),
        ("schedule.learning_rate must be above 0", schedule.learning_rate > 0),
        (f"schedule.optimizer must be one of {', '.join(_OPTIMIZERS)}", schedule.optimizer in _OPTIMIZERS),
        (f"schedule.decay must be one of {', '.join(_DECAYS)}", schedule.decay in _DECAYS),
        (f"schedule.keep must be one of {', '.join(_KEEPS)}", schedule.keep in _KEEPS),
        ("augmentation.mix must not be below 0", how.mix >= 0),
        ("schedule.patience_epochs must be at least 1", schedule.patience_epochs >= 1),
        ("schedule.stop_epochs must not be below 0", schedule.stop_epochs >= 0),
        (f"schedule.precision must be one of {', '.join(_PRECISIONS)}", schedule.precision in _PRECISIONS),
        (
            "schedule.size_shares must be as many as schedule.sizes_px and add up to 1",
            len(schedule.size_shares) == len(schedule.sizes_px) and abs(sum(schedule.size_shares) - 1) < 1e-6,
        ),
        ("schedule.sizes_px must end with 48", schedule.sizes_px[-1:] == (48,)),
    ]
    for demand, met in demands:
        if not met:
            raise ConfigError(f"{path}: {demand}.")
