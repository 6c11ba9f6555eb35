"""labelled images + recipe -> model directory: the training loop, resumable after every epoch."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import math
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ferflow.emotions import EMOTIONS
from ferflow.errors import ConfigError
from ferflow.faces import resize_faces
from models.emotion_classifier import EmotionModel, ModelDescription, load_network, save_model
from models.emotion_cnn import CROP_SIZE_PX, build_emotion_cnn, served_size_px
from models.face_network import start_from_face_network
from models.store import find_model
from training.augment import augment_batch, mix_batch
from training.checkpoint import Checkpoint, Epoch, read_checkpoint, write_checkpoint
from training.dataset import DataSplits, Leaks, load_splits, soft_targets
from training.evaluation import evaluate
from training.figures import draw_figures
from training.machine import find_machine
from training.metrics import calibrate, favour_rare_answers, fit_calibration, measure
from training.model_card import write_card
from training.recipe import DEFAULT_RECIPE, OWN_STARTS, Network, Recipe, Schedule, load_recipe
from training.teachers import ask_teachers

if TYPE_CHECKING:
    import keras

_log = logging.getLogger(__name__)

CHECKPOINT_FILE = "checkpoint.npz"
"""In the folder of a run."""

FIGURES = "figures"
"""In the folder of a run too, and not in the model's: one of the pictures shows images of the data."""

_PREDICT_BATCH = 256
_BATCHES_AHEAD = 4


@dataclass(frozen=True, slots=True)
class Step:
    """Where a training is."""

    epoch: int
    """The epoch that is running, from 1."""
    epochs: int
    """How many there will be."""
    done: int
    """Images of this epoch that were learned from."""
    images: int
    """Images of an epoch."""
    loss: float
    """Mean over those done."""
    accuracy: float
    """Mean over those done, 0 to 1."""


def train(
    data: Path,
    config: Path | None,
    out_dir: Path,
    *,
    labels_csv: Path | None = None,
    leaks: Leaks = "refuse",
    on_step: Callable[[Step], None] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> Path:
    """Train an emotion model, or go on with an interrupted training.

    Args:
        data: labelled images, see `training.dataset.load_splits`.
        config: the recipe's file; None for configs/train.toml.
        out_dir: where the checkpoint and then the model directory and the pictures go; the same call goes on from the
            checkpoint.
        labels_csv: table of crowd votes, if not in or beside `data`.
        leaks: what to do about training images that are also held out.
        on_step: called after each step.
        on_epoch: called after each epoch.

    Returns:
        The finished model directory, `out_dir / version`; pictures of the training are in `out_dir / FIGURES`.

    Raises:
        DataError: the data cannot be trained on.
        ConfigError: the recipe has a mistake, or out_dir holds the checkpoint of another recipe or of other data.
    """
    recipe = load_recipe(config or DEFAULT_RECIPE)
    splits = load_splits(data, size_px=CROP_SIZE_PX, labels_csv=labels_csv, leaks=leaks)
    for line in splits.report.in_words():
        _log.info("%s", line)
    start = _start_of(recipe)
    weights, history = fit_network(splits, recipe, out_dir, start=start, on_step=on_step, on_epoch=on_epoch)
    directory = finish_model(splits, recipe, weights, history, out_dir)
    scores = EmotionModel(directory).classify_photos(splits.test.images_gray)
    draw_figures([dataclasses.asdict(epoch) for epoch in history], scores, splits, out_dir / FIGURES)
    return directory


def finish_model(
    splits: DataSplits,
    recipe: Recipe,
    weights: Sequence[np.ndarray],
    history: Sequence[Epoch],
    out_dir: Path,
    *,
    origin: Mapping[str, Any] | None = None,
) -> Path:
    """Calibrate a fitted network on the validation images, measure it and save it.

    Args:
        splits: what it was fitted to and is measured on.
        recipe: how it was fitted.
        weights: what `fit_network` gave.
        history: what `fit_network` gave.
        out_dir: where the model directory goes.
        origin: what else model.json should say of the data, as JSON can hold it.

    Returns:
        The model directory, `out_dir / version`.
    """
    size_px = served_size_px(recipe.network.kind)
    uncalibrated = build_network(recipe.network, size_px=size_px)
    uncalibrated.set_weights(weights)

    def answer(images_gray: np.ndarray) -> np.ndarray:
        return _predict(uncalibrated, resize_faces(images_gray, size_px))

    probabilities, labels = answer(splits.validation.images_gray), splits.validation.labels
    calibration = favour_rare_answers(
        probabilities,
        labels,
        fit_calibration(probabilities, labels),
        least_recall=recipe.targets.least_recall,
    )
    # softmax(logits / temperature + bias) with the bias moved into the last layer's own.
    shift = np.float32(calibration.temperature) * np.asarray(calibration.class_biases, np.float32)
    network = build_network(recipe.network, temperature=calibration.temperature, size_px=size_px)
    network.set_weights([*weights[:-1], weights[-1] + shift])
    description = ModelDescription(
        name=recipe.name,
        crop_size_px=size_px,
        temperature=calibration.temperature,
        class_biases=dict(zip(EMOTIONS, calibration.class_biases, strict=True)),
        framing=recipe.framing,
        commit=_commit(),
        recipe=dataclasses.asdict(recipe),
        data=describe_splits(splits) | dict(origin or {}),
        metrics=evaluate(lambda images_gray: calibrate(answer(images_gray), calibration), splits),
        history=[dataclasses.asdict(epoch) for epoch in history],
    )
    directory = save_model(out_dir, network, description=description)
    write_card(directory)
    _log.info("%s: accuracy %.2f %% on the test images", directory, 100 * description.metrics["test"]["accuracy"])
    return directory


def describe_splits(splits: DataSplits) -> dict[str, Any]:
    """Say in numbers what was trained on, for model.json."""
    return {"sha256": splits.sha256} | splits.report.as_json()


def _commit() -> str | None:
    """Name the commit of this code, with `+` when files were changed since; None outside a repository."""
    root = Path(__file__).parents[1]
    code = ("training/*.py", "models/emotion_cnn.py", "ferflow/faces.py")
    try:
        run = functools.partial(subprocess.run, cwd=root, check=True, capture_output=True, text=True)
        changed = run(["git", "status", "--porcelain", "--untracked-files=no", "--", *code])
        return run(["git", "rev-parse", "HEAD"]).stdout.strip() + ("+" if changed.stdout else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def fit_network(
    splits: DataSplits,
    recipe: Recipe,
    run_dir: Path,
    *,
    start: Sequence[np.ndarray] | None = None,
    on_step: Callable[[Step], None] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> tuple[list[np.ndarray], list[Epoch]]:
    """Fit the network, or go on where an interrupted call with the same recipe and data stopped.

    Every epoch draws its chance from the seed and its own number, so a resumed training sees what an unbroken one
    would have seen.

    Args:
        splits: what to fit to and what to watch.
        recipe: how.
        run_dir: where the checkpoint lies; made if missing.
        start: weights to start from, in the order of the model's `get_weights`; None for what the recipe says.
        on_step: called after each step.
        on_epoch: called after each epoch, once its checkpoint is safe.

    Returns:
        The averaged weights in the order of the model's `get_weights`, of the last epoch or, if the recipe says so, of
        the best or of one of these and the start; and what each epoch left.

    Raises:
        ConfigError: run_dir holds the checkpoint of another recipe, of other data or of another start.
        ModelError: the face network that the recipe starts from cannot be had.
    """
    schedule = recipe.schedule
    machine = find_machine()
    precision = machine.precision if schedule.precision == "auto" else schedule.precision
    _log.info("training on %s in %s", machine.device, precision)
    network = build_network(recipe.network, precision=precision, size_px=None)
    optimizer = _make_optimizer(schedule, math.ceil(len(splits.train) / schedule.batch_size), precision)
    learner = _compile_learner(network, optimizer, votes_head=recipe.targets.votes_head)
    _draw_kernels(learner, schedule.seed)
    optimizer.build(learner.trainable_variables)

    run_dir.mkdir(parents=True, exist_ok=True)
    checkpoint_path = run_dir / CHECKPOINT_FILE
    fingerprint = _fingerprint(splits, recipe, start)
    checkpoint = read_checkpoint(checkpoint_path, fingerprint)
    if checkpoint is None:
        if start is not None:
            network.set_weights(start)
        elif recipe.network.start == "face_network":
            start_from_face_network(network)
        average, best, history = network.get_weights(), network.get_weights(), []
    else:
        learner.set_weights(checkpoint.weights)
        for variable, value in zip(optimizer.variables, checkpoint.optimizer, strict=True):
            variable.assign(value)
        average, best, history = checkpoint.average, checkpoint.best, list(checkpoint.history)
        _log.info("going on after epoch %d of %d", len(history), schedule.epochs)

    targets = soft_targets(splits.train, votes_share=recipe.targets.votes_share, smoothing=recipe.targets.smoothing)
    if share := recipe.targets.teachers_share:
        answers = ask_teachers([*map(find_model, recipe.targets.teachers)], splits.train.images_gray)
        targets = targets + np.float32(share) * (answers - targets)
    if recipe.targets.votes_head:
        targets = np.concatenate([targets, soft_targets(splits.train, votes_share=1, smoothing=0)], axis=1)
    # Of the answer alone where a second one is learned beside it.
    answer = "" if learner is network else "probabilities_"
    while len(history) < schedule.epochs and not has_stalled(schedule, history):
        number, started = len(history) + 1, time.monotonic()
        if schedule.decay == "plateau":
            optimizer.learning_rate = rate_on_plateau(schedule, history)
        if number > 1 and size_in_epoch(schedule, number) != size_in_epoch(schedule, number - 1):
            # Traced anew: for a size left open TensorFlow would know none, and enlarging a face needs one.
            learner.make_train_function(force=True)
        _seed_dropout(learner, schedule.seed, number)
        done, loss, right = 0, 0.0, 0.0
        for faces, answers in _batches(splits, targets, recipe, number):
            # Keras gives the means of this one batch.
            heads = np.split(answers, len(learner.outputs), axis=1)
            step = learner.train_on_batch(faces, heads, return_dict=True)
            done += len(faces)
            loss += step[f"{answer}loss"] * len(faces)
            right += step[f"{answer}accuracy"] * len(faces)
            _blend(average, network.get_weights(), schedule.average_decay, int(optimizer.iterations))
            if on_step is not None:
                on_step(Step(number, schedule.epochs, done, len(splits.train), loss / done, right / done))
        measured = measure(_predict_with(network, average, splits.validation.images_gray), splits.validation.labels)
        epoch = Epoch(
            number=number,
            train_loss=loss / done,
            train_accuracy=right / done,
            validation_loss=measured.log_loss,
            validation_accuracy=measured.accuracy,
            seconds=time.monotonic() - started,
        )
        history.append(epoch)
        if best_epoch(history) == number:
            best = [array.copy() for array in average]
        variables = [np.array(variable) for variable in optimizer.variables]
        write_checkpoint(
            checkpoint_path,
            Checkpoint(fingerprint, tuple(history), learner.get_weights(), average, best, variables),
        )
        left = (schedule.epochs - number) * epoch.seconds / 60
        _log.info(
            "epoch %d/%d: loss %.3f, accuracy %.1f %%; validation loss %.3f, accuracy %.1f %%; %.0f s, %.0f min left",
            *(number, schedule.epochs, epoch.train_loss, 100 * epoch.train_accuracy),
            *(epoch.validation_loss, 100 * epoch.validation_accuracy, epoch.seconds, left),
        )
        if on_epoch is not None:
            on_epoch(epoch)
    kept = best if schedule.keep == "best" else average
    if start is not None and schedule.start_share:
        # What a model knew before it was trained further holds on other faces than those of the training: the mean of
        # both is better there, often here too (Wortsman et al. 2022, arXiv:2109.01903).
        kept = [new + np.float32(schedule.start_share) * (old - new) for new, old in zip(kept, start, strict=True)]
    return kept, history


def weights_of(directory: Path, shape: Network) -> list[np.ndarray] | None:
    """A model's weights in the order in which `fit_network` takes them; None if it is of another shape.

    Raises:
        ModelError: the model cannot be loaded.
    """
    weights: list[np.ndarray] = load_network(directory).get_weights()
    is_alike = [it.shape for it in weights] == [it.shape for it in build_network(shape).get_weights()]
    return weights if is_alike else None


def _start_of(recipe: Recipe) -> list[np.ndarray] | None:
    if recipe.network.start in OWN_STARTS:
        return None
    directory = find_model(recipe.network.start)
    weights = weights_of(directory, recipe.network)
    if weights is None:
        raise ConfigError(f"{directory}: a network of another shape than the recipe's cannot start from this model.")
    return weights


def best_epoch(history: Sequence[Epoch]) -> int:
    """Number of the epoch of least validation loss; 0 before the first."""
    return min(history, key=lambda epoch: epoch.validation_loss).number if history else 0


def has_stalled(schedule: Schedule, history: Sequence[Epoch]) -> bool:
    """Whether the validation loss has not fallen for `stop_epochs` epochs."""
    return 0 < schedule.stop_epochs <= len(history) - best_epoch(history)


def rate_on_plateau(schedule: Schedule, history: Sequence[Epoch]) -> float:
    """The learning rate after these epochs: halved whenever the validation loss did not fall for `patience_epochs`."""
    rate, least, waited = schedule.learning_rate, math.inf, 0
    for epoch in history:
        waited += 1
        if epoch.validation_loss < least:
            least, waited = epoch.validation_loss, 0
        elif waited == schedule.patience_epochs:
            rate, waited = rate / 2, 0
    return rate


def build_network(shape: Network, **options: Any) -> keras.Model:
    """Build a recipe's network, its weights fresh; `options` as `build_emotion_cnn` takes them."""
    return build_emotion_cnn(
        kind=shape.kind, widths=shape.widths, blocks=shape.blocks, dropout=shape.dropout, **options
    )


def _compile_learner(network: keras.Model, optimizer: keras.optimizers.Optimizer, *, votes_head: float) -> keras.Model:
    """Give the network what it learns by: a loss and, where that has a weight, a head beside it for the votes."""
    import keras

    learner, weights = network, [1.0]
    if votes_head:
        features = network.get_layer("logits").input
        votes = keras.layers.Dense(len(EMOTIONS), activation="softmax", dtype="float32", name="votes")(features)
        learner, weights = keras.Model(network.inputs, [network.output, votes]), [1.0, votes_head]
    learner.compile(
        optimizer,
        ["categorical_crossentropy"] * len(weights),
        loss_weights=weights,
        metrics={"probabilities": ["accuracy"]},
        jit_compile=False,
    )
    return learner


def _draw_kernels(learner: keras.Model, seed: int) -> None:
    """Give every layer a fresh kernel that the seed alone decides.

    Keras would seed each initializer from Python's `random`, of which other threads of the process, as Prefect's, draw
    too, so that the same recipe would begin elsewhere.
    """
    for number, layer in enumerate(learner.layers):
        initializer = getattr(layer, "depthwise_initializer", None) or getattr(layer, "kernel_initializer", None)
        if initializer is not None:
            seeded = type(initializer).from_config({**initializer.get_config(), "seed": _chance(seed, number)})
            layer.kernel.assign(seeded(layer.kernel.shape))


def _seed_dropout(learner: keras.Model, seed: int, epoch: int) -> None:
    for number, layer in enumerate(learner.layers):
        generator = getattr(layer, "seed_generator", None)
        if generator is not None:
            generator.state.assign(np.array([_chance(seed, number, epoch), 0], np.uint32))


def _chance(*key: int) -> int:
    return int(np.random.default_rng(key).integers(2**31))


def _make_optimizer(schedule: Schedule, steps: int, precision: str) -> keras.optimizers.Optimizer:
    import keras

    from training.muon import make_muon

    warmup = round(schedule.warmup_epochs * steps)
    rate: Any = schedule.learning_rate
    if schedule.decay == "cosine":
        rate = (
            keras.optimizers.schedules.CosineDecay(
                0.0,
                max(schedule.epochs * steps - warmup, 1),
                warmup_target=schedule.learning_rate,
                warmup_steps=warmup,
            )
            if warmup
            else keras.optimizers.schedules.CosineDecay(schedule.learning_rate, schedule.epochs * steps)
        )
    optimizer: keras.optimizers.Optimizer
    match schedule.optimizer:
        case "muon":
            optimizer = make_muon(rate, weight_decay=schedule.weight_decay, precision=precision)
        case "adamw":
            optimizer = keras.optimizers.AdamW(rate, weight_decay=schedule.weight_decay)
        case _:
            optimizer = keras.optimizers.Adam(rate)
    if schedule.optimizer != "adam":
        # Shrinking a bias or a norm's scale only shifts what it does; decay is for kernels.
        optimizer.exclude_from_weight_decay(var_names=["bias", "beta", "gamma"])
    # float16 has no room for small gradients.
    return keras.optimizers.LossScaleOptimizer(optimizer) if precision == "mixed_float16" else optimizer


def _batches(
    splits: DataSplits, targets: np.ndarray, recipe: Recipe, epoch: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield one epoch's batches, augmented by a thread beside the one that trains."""
    schedule = recipe.schedule
    order = np.random.default_rng((schedule.seed, epoch)).permutation(len(splits.train))
    starts = range(0, len(order), schedule.batch_size)
    size_px = size_in_epoch(schedule, epoch)

    def make(step: int) -> tuple[np.ndarray, np.ndarray]:
        rows = order[starts[step] : starts[step] + schedule.batch_size]
        rng = np.random.default_rng((schedule.seed, epoch, step))
        faces = augment_batch(splits.train.images_gray[rows], recipe.augmentation, rng, size_px=size_px)
        answers = targets[rows]
        if recipe.augmentation.mix:
            faces, answers = mix_batch(faces, answers, recipe.augmentation.mix, rng)
        return faces[..., np.newaxis], answers

    with ThreadPoolExecutor(1) as pool:
        waiting = [pool.submit(make, step) for step in range(min(_BATCHES_AHEAD, len(starts)))]
        for step in range(len(starts)):
            batch = waiting.pop(0).result()
            if step + _BATCHES_AHEAD < len(starts):
                waiting.append(pool.submit(make, step + _BATCHES_AHEAD))
            yield batch


def size_in_epoch(schedule: Schedule, epoch: int) -> int:
    """Say how large the crops are in an epoch, numbered from 1: small ones first, which cost less."""
    done = 0.0
    for size_px, share in zip(schedule.sizes_px, schedule.size_shares, strict=True):
        done += share * schedule.epochs
        if epoch <= round(done):
            return size_px
    return schedule.sizes_px[-1]


def _blend(average: list[np.ndarray], weights: list[np.ndarray], decay: float, step: int) -> None:
    """Move the average towards the weights; in the first steps it forgets faster, or the start would linger."""
    keep = min(decay, step / (step + 10))
    for kept, new in zip(average, weights, strict=True):
        kept += (new - kept) * (1 - keep)


def _predict_with(network: keras.Model, weights: list[np.ndarray], images_gray: np.ndarray) -> np.ndarray:
    """Score images with other weights than the network has at the moment; float32 (n, 7)."""
    own = network.get_weights()
    network.set_weights(weights)
    scores = _predict(network, images_gray)
    network.set_weights(own)
    return scores


def _predict(network: keras.Model, images_gray: np.ndarray) -> np.ndarray:
    batches = [images_gray[start : start + _PREDICT_BATCH] for start in range(0, len(images_gray), _PREDICT_BATCH)]
    return np.concatenate([network.predict_on_batch(batch[..., np.newaxis]) for batch in batches])


def _fingerprint(splits: DataSplits, recipe: Recipe, start: Sequence[np.ndarray] | None) -> str:
    """Name what the weights depend on; a model's name and framing may still change after a training."""
    parts = (recipe.network, recipe.targets, recipe.schedule, recipe.augmentation)
    digest = hashlib.sha256(json.dumps([dataclasses.asdict(part) for part in parts]).encode())
    digest.update(splits.sha256.encode())
    # The same data with other images left out is another training.
    digest.update("".join(splits.train.digests).encode())
    for array in start or ():
        digest.update(array.tobytes())
    return digest.hexdigest()
