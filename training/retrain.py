"""labelled/<emotion>/* + the model in use -> a candidate, judged and kept: promoted, or refused with its reasons

What a candidate has learned, and what was held out of it, stands in its own model.json and nowhere else. So no image
counts as new twice, and none that the model in use has learned is ever used to judge its successor.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from ferflow.emotions import EMOTIONS
from ferflow.errors import ConfigError, ModelError, NothingToLearnError
from ferflow.mirror import Mirror
from ferflow.storage import is_local, place
from models.emotion_classifier import DESCRIPTION_FILE, EmotionModel, ModelDescription, read_description
from models.emotion_cnn import CROP_SIZE_PX, served_size_px
from models.store import MODELS_VARIABLE, ModelStore, Verdict
from models.wheels import cache_folder
from training.checkpoint import Epoch
from training.dataset import DataSplits, LabelledImages, load_labelled, load_splits
from training.duplicates import same_photo
from training.figures import draw_confusion, draw_curves, draw_reliability
from training.fit import Step, finish_model, fit_network, weights_of
from training.formats import read_labelled_folder
from training.metrics import measure
from training.promotion import Comparison, compare, decide
from training.recipe import Recipe, parse_recipe
from training.retrain_settings import RetrainSettings

_log = logging.getLogger(__name__)

WORK_FOLDER = ".retraining"
"""In the store: checkpoints of the retraining that is under way, and the lock that keeps it the only one."""

_LOOK_SECONDS = 10.0
_RECORD = "labelled"
# Key of what model.json says of labelled images, in its `data`.


@dataclass(frozen=True, slots=True)
class LabelledRecord:
    """What one model has to do with labelled images; each is named by its label and its pixels, `happy:0f…`."""

    learned: frozenset[str] = frozenset()
    """It or a model that it descends from was fitted to these."""
    held_out: frozenset[str] = frozenset()
    """It or a model that it descends from was judged on these; they are never learned."""
    left_out: frozenset[str] = frozenset()
    """These were looked at and not used: they are in the old data, or in a video or photo on the other side."""
    folder: str = ""
    """Names the folder without telling where it is."""
    files: frozenset[str] = frozenset()
    """What lay in the folder when it was looked at; each file is named by a hash of its path, length and time."""


@dataclass(frozen=True, slots=True)
class LabelledSplit:
    """Labelled images of a retraining, dealt out."""

    learned: LabelledImages
    """To be fitted to: new ones, and all that the model in use has learned before."""
    held_out: LabelledImages
    """New ones to judge by."""
    left_out: LabelledImages
    """New ones of no use."""
    new_count: int
    """How many are new in all."""


@dataclass(frozen=True, slots=True)
class Retraining:
    """What came of a retraining."""

    directory: Path
    """The candidate in the store."""
    verdict: Verdict
    """What became of it."""


def count_new_images(settings: RetrainSettings, store: ModelStore) -> int:
    """Count the labelled images that no judged candidate has seen.

    While the files that were not there at the last retraining are too few to start another, they alone are counted and
    none is opened: looking again and again costs next to nothing.

    Raises:
        DataError: there is no folder of labelled images.
        ModelError: the model in use is gone.
    """
    seen, known = _seen(store, settings.labelled)
    fresh = {path for path, name in _settled_files(settings).items() if name not in known}
    if len(fresh) < settings.min_new_images:
        return len(fresh)
    images, _ = load_labelled(_labelled_folder(settings), size_px=CROP_SIZE_PX)
    return len({name for path, name in zip(images.paths, _names(images), strict=True) if path in fresh} - seen)


def retrain(
    settings: RetrainSettings,
    store: ModelStore,
    *,
    on_step: Callable[[Step], None] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> Retraining | None:
    """Fine-tune the model in use on newly labelled images and some old ones; promote what comes out if it is better.

    An interrupted call is gone on with by the same call. What is decided, and on what numbers, is kept beside the
    candidate, and so is a refused candidate. See `training.promotion` for the rule.

    Args:
        settings: when and how.
        store: the models.
        on_step: called after each step of the training.
        on_epoch: called after each epoch.

    Returns:
        The candidate and its verdict; None while there are fewer new images than the settings ask for.

    Raises:
        DataError: a folder or the old data is not there.
        NothingToLearnError: no new image is of use.
        ConfigError: another retraining is under way, or another model was taken into use during this one.
        ModelError: the model in use cannot be trained on, or the store cannot be written.
    """
    with _alone(store.root / WORK_FOLDER) as work:
        _finish_promotion(store)
        if count_new_images(settings, store) < settings.min_new_images:
            return None
        in_use = store.in_use()
        description = read_description(in_use)
        recipe = gentle_recipe(description, in_use, settings)
        old = load_splits(settings.data, size_px=CROP_SIZE_PX, leaks="leave_out")
        settled = _settled_files(settings)
        images, report = load_labelled(_labelled_folder(settings), size_px=CROP_SIZE_PX)
        images = _take(images, [path in settled for path in images.paths])
        record = record_of(description)
        split = split_labelled(images, record, old, holdout_share=settings.holdout_share)
        if not len(split.learned):
            raise NothingToLearnError(
                f"{settings.labelled}: of {split.new_count} new images none is left to learn from; "
                f"{len(split.held_out)} are held out to judge by, {len(split.left_out)} are in the old data or repeat "
                "others. Label faces of other videos."
            )
        for line in report.in_words():
            _log.info("%s", line)

        mixed, replayed = _mix(split.learned, old, settings, recipe.schedule.seed)
        run_dir = work / _fingerprint(mixed, recipe, description)[:16]
        for abandoned in work.iterdir():
            if abandoned.is_dir() and abandoned != run_dir:
                shutil.rmtree(abandoned)
        start = starting_weights(in_use, recipe)
        weights, history = fit_network(mixed, recipe, run_dir, start=start, on_step=on_step, on_epoch=on_epoch)
        merged = LabelledRecord(
            learned=record.learned | set(_names(split.learned)),
            held_out=record.held_out | set(_names(split.held_out)),
            left_out=frozenset(_names(split.left_out)),
            folder=_folder_id(settings.labelled),
            files=frozenset(settled.values()),
        )
        origin = {
            "parent": description.version,
            "old_sha256": old.sha256,
            "replayed": replayed,
            _RECORD: _as_json(merged),
        }
        candidate = finish_model(mixed, recipe, weights, history, store.root, origin=origin)
        if (now := store.in_use()) != in_use:
            raise ConfigError(
                f"{candidate}: while it was trained, {now.name} was taken into use in place of {in_use.name}, which it "
                "would be judged against. Start the retraining again; it begins with the model in use."
            )
        verdict = _judge(candidate, in_use, split, old, settings)
        store.keep_verdict(candidate.name, verdict)
        if verdict.decision == "promoted":
            store.promote(candidate.name, reason=" ".join(verdict.reasons), in_place_of=in_use.name)
        shutil.rmtree(run_dir)
    return Retraining(candidate, verdict)


def read_retraining(directory: Path) -> Retraining:
    """Read what came of the retraining that made a model in a store.

    Raises:
        ModelError: no verdict lies beside it.
    """
    for model in ModelStore(directory.parent).versions():
        if model.path == directory and model.verdict is not None:
            return Retraining(directory, model.verdict)
    raise ModelError(f"{directory}: no verdict of a retraining lies beside this model. Retrain again.")


def split_labelled(
    images: LabelledImages, record: LabelledRecord, old: DataSplits, *, holdout_share: float
) -> LabelledSplit:
    """Deal labelled images out so that what judges a candidate is new to it and to the model in use.

    Faces of one video, which `ferflow review` names in the file, are all learned or all held out, and for good: their
    place follows from the video's hash, or, where no video is named, from the image's own. Left out are new images
    whose photo is in the old data, whichever label it has there; held-out ones whose photo was learned before; and
    those to be learned whose photo is held out.

    Args:
        images: what lies in the folder.
        record: what the model in use has to do with labelled images.
        old: the old data.
        holdout_share: which share of the hashes is held out.
    """
    names = _names(images)
    learned = np.array([name in record.learned for name in names], bool)
    judged = np.array([name in record.held_out for name in names], bool) & ~learned
    is_new = ~learned & ~judged
    # Under another label, perhaps: a label that was corrected makes another fact of a photo that is known.
    known = {name.rpartition(":")[2] for name in record.learned}
    held_out = is_new & np.array(
        [
            digest not in known and _is_held_out(path, digest, holdout_share)
            for path, digest in zip(images.paths, images.digests, strict=True)
        ],
        bool,
    )
    gray = images.images_gray
    in_old = np.zeros(len(images), bool)
    for part in (old.train, old.validation, old.test):
        in_old[same_photo(gray, part.images_gray)[:, 0]] = True
    useless = is_new & in_old
    held_out_rows, learned_rows = np.flatnonzero(held_out & ~useless), np.flatnonzero(learned)
    useless[held_out_rows[same_photo(gray[held_out_rows], gray[learned_rows])[:, 0]]] = True
    held_out &= ~useless
    to_learn_rows, apart_rows = np.flatnonzero(is_new & ~held_out & ~useless), np.flatnonzero(held_out | judged)
    useless[to_learn_rows[same_photo(gray[to_learn_rows], gray[apart_rows])[:, 0]]] = True
    return LabelledSplit(
        learned=_take(images, learned | (is_new & ~held_out & ~useless)),
        held_out=_take(images, held_out),
        left_out=_take(images, useless),
        new_count=int(is_new.sum()),
    )


def record_of(description: ModelDescription) -> LabelledRecord:
    """What a model says of labelled images; an empty record where it was not made by a retraining.

    Raises:
        ModelError: what it says is damaged.
    """
    table = description.data.get(_RECORD)
    if table is None:
        return LabelledRecord()
    try:
        names = {name: frozenset(map(str, table[name])) for name in ("learned", "held_out", "left_out")}
        # Older ones do not say the last: then all files are looked at once more.
        return LabelledRecord(**names, folder=str(table["folder"]), files=frozenset(map(str, table.get("files", ()))))
    except (TypeError, KeyError, ValueError) as error:
        raise ModelError(
            f"{description.version}: its {DESCRIPTION_FILE} does not say which labelled images it has seen ({error}). "
            "Fetch or train the model again."
        ) from error


def _judge(candidate: Path, in_use: Path, split: LabelledSplit, old: DataSplits, settings: RetrainSettings) -> Verdict:
    """Ask both models, in the form in which they serve, and draw what the candidate does on the old test images."""
    asked, answers = EmotionModel(candidate), EmotionModel(in_use)
    scores = asked.classify_photos(old.test.images_gray)
    draw_curves(asked.description.history, candidate / "curves.png")
    draw_confusion(measure(scores, old.test.labels), candidate / "confusion.png")
    draw_reliability(scores, old.test.labels, candidate / "reliability.png")

    def right(model: EmotionModel, images: LabelledImages) -> np.ndarray:
        hits: np.ndarray = model.classify_photos(images.images_gray).argmax(axis=1) == images.labels
        return hits

    on_old = compare(scores.argmax(axis=1) == old.test.labels, right(answers, old.test))
    on_new = compare(right(asked, split.held_out), right(answers, split.held_out))
    decision = decide(
        on_new,
        on_old,
        significance=settings.significance,
        old_margin_points=settings.old_margin_points,
        holdout_share=settings.holdout_share,
    )
    _log.info("%s", " ".join(decision.reasons))
    return Verdict(
        decision="promoted" if decision.is_promoted else "refused",
        reasons=decision.reasons,
        comparison=_comparison(on_new, on_old, split, settings),
        decided_at=datetime.now(UTC),
        compared_with=answers.version,
    )


def _comparison(new: Comparison, old: Comparison, split: LabelledSplit, settings: RetrainSettings) -> dict[str, Any]:
    return {
        "new": dataclasses.asdict(new),
        "old": dataclasses.asdict(old),
        "new_images": split.new_count,
        "left_out": len(split.left_out),
        "significance": settings.significance,
        "old_margin_points": settings.old_margin_points,
    }


def _finish_promotion(store: ModelStore) -> None:
    """Promote what was judged better when the process was killed before it could; not what was rolled back since."""
    once = {promotion.version for promotion in store.promotions()}
    in_use = store.in_use().name
    for model in store.versions():
        verdict = model.verdict
        if verdict is None or verdict.decision != "promoted" or verdict.compared_with != in_use:
            continue
        if model.description.version not in once:
            _log.info("%s was found better, but the process ended before it was promoted", model.path)
            store.promote(model.description.version, reason=" ".join(verdict.reasons), in_place_of=in_use)


def gentle_recipe(description: ModelDescription, directory: Path, settings: RetrainSettings) -> Recipe:
    """The recipe of the model in use, changed for a fine-tune.

    It learns from that model's own answers beside the labels (Li, Hoiem 2016, Learning without Forgetting,
    arXiv:1606.09282), and what comes out is a mean of the weights before and after (Wortsman et al. 2022,
    arXiv:2109.01903).

    Raises:
        ModelError: this version cannot train a model of that recipe further.
    """
    try:
        recipe = parse_recipe(dict(description.recipe), directory / DESCRIPTION_FILE)
    except ConfigError as error:
        raise _not_trainable(directory, error) from error
    if description.crop_size_px not in (CROP_SIZE_PX, size_px := served_size_px(recipe.network.kind)):
        raise _not_trainable(directory, f"it reads crops of {description.crop_size_px} pixels, not {size_px}")
    schedule = dataclasses.replace(
        recipe.schedule,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        decay="cosine",
        warmup_epochs=min(0.5, settings.epochs / 2),
        stop_epochs=0,
        keep="last",
        sizes_px=(CROP_SIZE_PX,),
        size_shares=(1.0,),
        start_share=settings.kept_share,
    )
    # What it was taught by is not at hand everywhere. A second answer, to the crowd's votes, was not saved with it and
    # would begin from nothing; new faces have no votes.
    targets = dataclasses.replace(
        recipe.targets,
        teachers=(description.version,) if settings.kept_share else (),
        teachers_share=settings.kept_share,
        votes_head=0.0,
    )
    return dataclasses.replace(recipe, schedule=schedule, targets=targets, framing=description.framing)


def starting_weights(directory: Path, recipe: Recipe) -> list[np.ndarray]:
    """The weights of the model in use, in the order in which `fit_network` takes them.

    Raises:
        ModelError: the model is not of the kind that its recipe names.
    """
    weights = weights_of(directory, recipe.network)
    if weights is None:
        raise _not_trainable(directory, "its layers are not those that its recipe names")
    return weights


def _not_trainable(directory: Path, reason: object) -> ModelError:
    return ModelError(
        f"{directory}: this model is in use, but cannot be trained further by this version of ferflow ({reason}). "
        "Train one with `ferflow train` and promote it."
    )


def _mix(learned: LabelledImages, old: DataSplits, settings: RetrainSettings, seed: int) -> tuple[DataSplits, int]:
    """Put labelled and old images together; gives also how many old ones."""
    count = min(round(settings.replay_per_new * len(learned)), len(old.train))
    rows = np.random.default_rng(seed).permutation(len(old.train))[:count]
    replay = np.zeros(len(old.train), bool)
    replay[rows] = True
    train = _join([learned, _take(old.train, replay)])
    names = "\n".join([old.sha256, *_names(train)])
    return dataclasses.replace(old, train=train, sha256=hashlib.sha256(names.encode()).hexdigest()), count


def _fingerprint(mixed: DataSplits, recipe: Recipe, in_use: ModelDescription) -> str:
    return hashlib.sha256(repr((mixed.sha256, recipe, in_use.version)).encode()).hexdigest()


def _is_held_out(path: str, digest: str, share: float) -> bool:
    from ferflow.review import video_id_of

    # Hashed once more, so that this choice has nothing to do with any other that is made by the same digits.
    key = hashlib.sha256(f"held out: {video_id_of(path) or digest}".encode()).hexdigest()
    return int(key[:8], 16) / 16**8 < share


def _seen(store: ModelStore, folder: str) -> tuple[frozenset[str], frozenset[str]]:
    """What judged candidates and the model in use have seen, and which files of this folder."""
    seen, files = frozenset[str](), frozenset[str]()
    folder_id = _folder_id(folder)
    for model in store.versions():
        # A candidate whose retraining was killed before the verdict does not count: it is made again.
        if model.verdict is not None or model.is_in_use:
            try:
                record = record_of(model.description)
            except ModelError as error:
                _log.warning("%s", error)
                continue
            seen |= record.learned | record.held_out | record.left_out
            if record.folder == folder_id:
                files |= record.files
    return seen, files


def _labelled_folder(settings: RetrainSettings) -> Path:
    """The labelled faces on this machine; those of a bucket are brought.

    Raises:
        ConfigError: there is no such bucket, or its key is missing or wrong.
    """
    named = place(settings.labelled)
    return named if is_local(named) else _mirror_of(named).pull(older_than_seconds=_LOOK_SECONDS)


@functools.cache
def _mirror_of(bucket: Path) -> Mirror:
    """One of a process, which knows when it last looked."""
    return Mirror(bucket, cache_folder() / "labelled")


def _settled_files(settings: RetrainSettings) -> dict[str, str]:
    """Files of labelled emotions that are not being written any more: paths relative to the folder, and their names.

    By the time of their last change as the system keeps it: copying sets the one that users see to the original's. A
    file that is moved, alone or with its folder, gets another name.
    """
    folder = _labelled_folder(settings)
    # What a bucket has is whole.
    latest = time.time() - settings.settle_seconds if is_local(place(settings.labelled)) else math.inf
    names = {}
    for picture in read_labelled_folder(folder, decode=False):
        if picture.emotion is None or picture.fault is not None:
            continue
        with contextlib.suppress(OSError):
            found = (folder / picture.path).stat()
            if found.st_ctime <= latest:
                described = f"{found.st_size} {found.st_mtime_ns} {picture.path}".encode("utf-8", "surrogateescape")
                names[picture.path] = hashlib.sha256(described).hexdigest()[:16]
    return names


@contextlib.contextmanager
def _alone(work: Path) -> Iterator[Path]:
    """Keep a second retraining out; the system lets go if this process is killed."""
    import fcntl

    try:
        work.mkdir(parents=True, exist_ok=True)
        file = (work / "lock").open("w")
    except OSError as error:
        raise ModelError(
            f"{work}: this cannot be written ({error.strerror}). A retraining keeps its state there; correct the "
            f"permissions, or name another folder in {MODELS_VARIABLE}."
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"{work.parent}: another retraining of these models is under way. Wait until it has ended; what was "
                "labelled meanwhile is taken the next time."
            ) from error
        yield work


def _names(images: LabelledImages) -> list[str]:
    return [f"{EMOTIONS[label]}:{digest}" for label, digest in zip(images.labels, images.digests, strict=True)]


def _folder_id(named: str) -> str:
    folder = place(named)
    where = folder.resolve() if is_local(folder) else folder
    return hashlib.sha256(str(where).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _as_json(record: LabelledRecord) -> dict[str, Any]:
    return {
        name: sorted(value) if isinstance(value, frozenset) else value
        for name, value in dataclasses.asdict(record).items()
    }


def _take(images: LabelledImages, wanted: Iterable[bool] | np.ndarray) -> LabelledImages:
    rows = np.flatnonzero(np.fromiter(wanted, bool))

    def rows_of(column: Any) -> Any:
        return tuple(column[row] for row in rows) if isinstance(column, tuple) else column[rows]

    taken = {field.name: rows_of(getattr(images, field.name)) for field in dataclasses.fields(images)}
    return dataclasses.replace(images, **taken)


def _join(parts: Sequence[LabelledImages]) -> LabelledImages:
    def whole(columns: list[Any]) -> Any:
        return sum(columns, ()) if isinstance(columns[0], tuple) else np.concatenate(columns)

    names = [field.name for field in dataclasses.fields(LabelledImages)]
    return dataclasses.replace(parts[0], **{name: whole([getattr(part, name) for part in parts]) for name in names})
