"""labelled images + recipe -> model directory: the training loop, resumable after every epoch."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import math
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ferflow.emotions import EMOTIONS
from ferflow.errors import ConfigError
from models.emotion_classifier import ModelDescription, save_model
from models.emotion_cnn import CROP_SIZE_PX, build_emotion_cnn
from training.augment import augment_batch
from training.dataset import DataSplits, Leaks, load_splits, soft_targets
from training.metrics import calibrate, fit_calibration, measure
from training.recipe import DEFAULT_RECIPE, Recipe, Schedule, load_recipe

if TYPE_CHECKING:
    import keras

_log = logging.getLogger(__name__)

_PREDICT_BATCH = 256
_BATCHES_AHEAD = 4


@dataclass(frozen=True, slots=True)
class Epoch:
    """What one epoch left behind."""

    number: int
    """Starts at 1."""
    train_loss: float
    """Mean cross-entropy with the soft targets of the augmented images."""
    train_accuracy: float
    """Share of augmented images whose answer is the target's top class."""
    validation_loss: float
    """Log loss of the averaged weights on the validation labels."""
    validation_accuracy: float
    """Accuracy of the averaged weights on the validation labels."""
    seconds: float
    """Wall time."""


def train(
    data: Path,
    config: Path | None,
    out_dir: Path,
    *,
    labels_csv: Path | None = None,
    leaks: Leaks = "refuse",
    on_epoch: Callable[[Epoch], None] | None = None,
) -> Path:
    """Train an emotion model, or go on with an interrupted training.

    Args:
        data: labelled images, see `training.dataset.load_splits`.
        config: the recipe's file; None for configs/train.toml.
        out_dir: where the checkpoint and then the model directory go; the same call goes on from the checkpoint.
        labels_csv: table of crowd votes, if not in or beside `data`.
        leaks: what to do about training images that are also held out.
        on_epoch: called after each epoch.

    Returns:
        The finished model directory, `out_dir / version`.

    Raises:
        DataError: the data cannot be trained on.
        ConfigError: the recipe has a mistake, or out_dir holds the checkpoint of another recipe or of other data.
    """
    recipe = load_recipe(config or DEFAULT_RECIPE)
    splits = load_splits(data, size_px=CROP_SIZE_PX, labels_csv=labels_csv, leaks=leaks)
    for line in splits.report.in_words():
        _log.info("%s", line)
    weights, history = fit_network(splits, recipe, out_dir, on_epoch=on_epoch)

    uncalibrated = build_emotion_cnn(**dataclasses.asdict(recipe.network))
    uncalibrated.set_weights(weights)
    calibration = fit_calibration(_predict(uncalibrated, splits.validation.images_gray), splits.validation.labels)
    # softmax(logits / temperature + bias) with the bias moved into the last layer's own.
    shift = np.float32(calibration.temperature) * np.asarray(calibration.class_biases, np.float32)
    network = build_emotion_cnn(**dataclasses.asdict(recipe.network), temperature=calibration.temperature)
    network.set_weights([*weights[:-1], weights[-1] + shift])
    description = ModelDescription(
        name=recipe.name,
        crop_size_px=CROP_SIZE_PX,
        temperature=calibration.temperature,
        class_biases=dict(zip(EMOTIONS, calibration.class_biases, strict=True)),
        framing=recipe.framing,
        commit=_commit(),
        recipe=dataclasses.asdict(recipe),
        data=describe_splits(splits),
        metrics=evaluate(lambda images_gray: calibrate(_predict(uncalibrated, images_gray), calibration), splits),
        history=[dataclasses.asdict(epoch) for epoch in history],
    )
    directory = save_model(out_dir, network, description=description)
    _log.info("%s: accuracy %.2f %% on the test images", directory, 100 * description.metrics["test"]["accuracy"])
    return directory


def evaluate(classify: Callable[[np.ndarray], np.ndarray], splits: DataSplits) -> dict[str, dict[str, Any]]:
    """Measure a classifier on the images held out.

    Args:
        classify: uint8 (n, 48, 48) -> float (n, 7): an `EmotionModel`'s method or anybody else's.
        splits: the data.

    Returns:
        For `validation`, for `test`, for `test_unseen` (without photos that are also among the training images as
        delivered) and for `test_mirrored` (each image's scores averaged with its mirror image's) the fields of
        `Metrics` as JSON can hold them, the recall by name.
    """
    test, unseen = splits.test, ~splits.test.seen_in_training
    test_scores = classify(test.images_gray)
    mirrored_scores = classify(np.ascontiguousarray(test.images_gray[:, :, ::-1]))
    measured = {
        "validation": measure(classify(splits.validation.images_gray), splits.validation.labels),
        "test": measure(test_scores, test.labels),
        "test_mirrored": measure((test_scores + mirrored_scores) / 2, test.labels),
    }
    if unseen.any():
        measured["test_unseen"] = measure(test_scores[unseen], test.labels[unseen])
    return {
        split: dataclasses.asdict(metrics) | {"recall": dict(zip(EMOTIONS, metrics.recall, strict=True))}
        for split, metrics in measured.items()
    }


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
    on_epoch: Callable[[Epoch], None] | None = None,
) -> tuple[list[np.ndarray], list[Epoch]]:
    """Fit the network, or go on where an interrupted call with the same recipe and data stopped.

    Every epoch draws its chance from the seed and its own number, so a resumed training sees what an unbroken one
    would have seen.

    Args:
        splits: what to fit to and what to watch.
        recipe: how.
        run_dir: where the checkpoint lies; made if missing.
        on_epoch: called after each epoch, once its checkpoint is safe.

    Returns:
        The averaged weights in the order of the model's `get_weights`, and what each epoch left.

    Raises:
        ConfigError: run_dir holds the checkpoint of another recipe or of other data.
    """
    import keras

    schedule = recipe.schedule
    keras.utils.set_random_seed(schedule.seed)
    network = build_emotion_cnn(
        **dataclasses.asdict(recipe.network), precision=_precision(schedule.precision), size_px=None
    )
    steps = math.ceil(len(splits.train) / schedule.batch_size)
    optimizer = _make_optimizer(schedule, steps)
    network.compile(optimizer, "categorical_crossentropy", metrics=["accuracy"], jit_compile=False)
    optimizer.build(network.trainable_variables)
    average = network.get_weights()
    history: list[Epoch] = []

    run_dir.mkdir(parents=True, exist_ok=True)
    checkpoint = run_dir / "checkpoint.npz"
    fingerprint = _fingerprint(splits, recipe)
    if checkpoint.exists():
        average, history = _restore(checkpoint, fingerprint, network, optimizer)
        _log.info("going on after epoch %d of %d", len(history), schedule.epochs)

    targets = soft_targets(splits.train, **dataclasses.asdict(recipe.targets))
    for number in range(len(history) + 1, schedule.epochs + 1):
        started = time.monotonic()
        loss = right = 0.0
        for faces, answers in _batches(splits, targets, recipe, number):
            # Keras gives the means of this one batch.
            step = network.train_on_batch(faces, answers, return_dict=True)
            loss += step["loss"] * len(faces)
            right += step["accuracy"] * len(faces)
            _blend(average, network.get_weights(), schedule.average_decay, int(optimizer.iterations))
        measured = measure(_predict_with(network, average, splits.validation.images_gray), splits.validation.labels)
        epoch = Epoch(
            number=number,
            train_loss=loss / len(splits.train),
            train_accuracy=right / len(splits.train),
            validation_loss=measured.log_loss,
            validation_accuracy=measured.accuracy,
            seconds=time.monotonic() - started,
        )
        history.append(epoch)
        _keep(checkpoint, fingerprint, network, optimizer, average, history)
        left = (schedule.epochs - number) * epoch.seconds / 60
        _log.info(
            "epoch %d/%d: loss %.3f, accuracy %.1f %%; validation loss %.3f, accuracy %.1f %%; %.0f s, %.0f min left",
            *(number, schedule.epochs, epoch.train_loss, 100 * epoch.train_accuracy),
            *(epoch.validation_loss, 100 * epoch.validation_accuracy, epoch.seconds, left),
        )
        if on_epoch is not None:
            on_epoch(epoch)
    return average, history


def _precision(wanted: str) -> str:
    """Resolve `auto`: bfloat16 doubles the speed where the processor computes in it and halves it where it does not."""
    if wanted != "auto":
        return wanted
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return "float32"
    return "mixed_bfloat16" if "avx512_bf16" in flags or "amx_bf16" in flags else "float32"


def _make_optimizer(schedule: Schedule, steps: int) -> keras.optimizers.Optimizer:
    import keras

    from training.muon import make_muon

    warmup = round(schedule.warmup_epochs * steps)
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
    if schedule.optimizer == "muon":
        optimizer = make_muon(rate, weight_decay=schedule.weight_decay)
    else:
        optimizer = keras.optimizers.AdamW(rate, weight_decay=schedule.weight_decay)
    # Shrinking a bias or a norm's scale only shifts what it does; decay is for kernels.
    optimizer.exclude_from_weight_decay(var_names=["bias", "beta", "gamma"])
    return optimizer


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
        return faces[..., np.newaxis], targets[rows]

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


def _fingerprint(splits: DataSplits, recipe: Recipe) -> str:
    """Name what the weights depend on; a model's name and framing may still change after a training."""
    parts = (recipe.network, recipe.targets, recipe.schedule, recipe.augmentation)
    return hashlib.sha256(
        (json.dumps([dataclasses.asdict(part) for part in parts]) + splits.sha256).encode()
    ).hexdigest()


def _keep(
    checkpoint: Path,
    fingerprint: str,
    network: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    average: list[np.ndarray],
    history: list[Epoch],
) -> None:
    arrays: dict[str, Any] = {"fingerprint": fingerprint}
    arrays["history"] = json.dumps([dataclasses.asdict(epoch) for epoch in history])
    arrays |= {f"weights_{index}": array for index, array in enumerate(network.get_weights())}
    arrays |= {f"average_{index}": array for index, array in enumerate(average)}
    arrays |= {f"optimizer_{index}": np.array(variable) for index, variable in enumerate(optimizer.variables)}
    part = checkpoint.with_suffix(".part")
    with part.open("wb") as file:
        np.savez(file, **arrays)
    os.replace(part, checkpoint)


def _restore(
    checkpoint: Path, fingerprint: str, network: keras.Model, optimizer: keras.optimizers.Optimizer
) -> tuple[list[np.ndarray], list[Epoch]]:
    with np.load(checkpoint, allow_pickle=False) as kept:
        if str(kept["fingerprint"]) != fingerprint:
            raise ConfigError(
                f"{checkpoint}: it belongs to another recipe or other data. Choose another --out, or remove it to "
                "start afresh."
            )
        count = len(network.get_weights())
        network.set_weights([kept[f"weights_{index}"] for index in range(count)])
        for index, variable in enumerate(optimizer.variables):
            variable.assign(kept[f"optimizer_{index}"])
        history = [Epoch(**epoch) for epoch in json.loads(str(kept["history"]))]
        return [kept[f"average_{index}"] for index in range(count)], history
