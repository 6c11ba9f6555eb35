"""Retraining on newly labelled faces: the real training code on patterns that it tells apart in seconds."""

import dataclasses
import fcntl
import itertools
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import NormalDist

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from ferflow.config import Settings
from ferflow.emotions import EMOTIONS
from ferflow.errors import ConfigError, DataError, ModelError
from ferflow.rows import TABLES
from ferflow.sources import find_videos, open_results
from flows.in_process import analyze_in_process
from models.emotion_classifier import DESCRIPTION_FILE, read_description
from models.store import MODELS_VARIABLE, ModelStore, Verdict, shipped_model
from training.checkpoint import Epoch
from training.data_report import DataReport, Finding, LeftOut
from training.dataset import DataSplits, LabelledImages
from training.duplicates import digest_of
from training.fit import train
from training.promotion import Comparison, chance_of_gain, compare, decide, least_gain
from training.retrain import (
    WORK_FOLDER,
    LabelledRecord,
    count_new_images,
    gentle_recipe,
    read_retraining,
    record_of,
    retrain,
    split_labelled,
    starting_weights,
)
from training.retrain_settings import RetrainSettings, load_retrain_settings

CONFIGS = Path(__file__).parents[1] / "configs"

# Keras 3.15 hands numpy 2.4 tensors whose __array__ takes no copy keyword.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


# The rule by which a candidate is promoted.


def rule(new: Comparison, old: Comparison, **changes: float) -> tuple[bool, str]:
    settings = {"significance": 0.05, "old_margin_points": 1.0, "holdout_share": 0.25} | changes
    decision = decide(new, old, **settings)
    return decision.is_promoted, " ".join(decision.reasons)


SAME_ON_OLD = Comparison(3589, 2600, 2600, 60, 60)


def test_better_on_the_new_and_no_worse_on_the_old_is_promoted_and_the_numbers_are_said():
    promoted, said = rule(Comparison(30, 22, 14, 9, 1), SAME_ON_OLD)
    assert promoted
    assert said == (
        "On 30 new images that neither has learned it is right on 22, the model in use on 14 (9 only it, 1 only the "
        "other): better, p = 0.011 by McNemar's exact test, one-sided. On 3,589 old test images it is right on 72.4 %, "
        "the model in use on 72.4 %: at worst 0.5 points lost with 95% confidence, and 1 may be lost."
    )


def test_a_gain_that_may_be_chance_is_refused_and_says_how_many_more_to_label():
    promoted, said = rule(Comparison(20, 12, 9, 4, 1), SAME_ON_OLD)
    assert not promoted
    assert "better, but that may be chance, p = 0.188" in said
    held_out, labelled = (int(word) for word in said.split() if word.isdigit() and f"about {word} more" in said)
    assert labelled == 4 * held_out
    # With so many more of the same kind it would be promoted.
    count = 20 + held_out
    won, lost = round(count * 4 / 20), round(count * 1 / 20)
    assert rule(Comparison(count, 0, 0, won, lost), SAME_ON_OLD)[0]


def test_no_gain_is_refused_however_good_it_is_on_the_old():
    assert rule(Comparison(30, 14, 14, 3, 3), Comparison(3589, 3000, 2600, 500, 100)) == (
        False,
        "On 30 new images that neither has learned it is right on 14, the model in use on 14 (3 only it, 3 only the "
        "other): not better. On 3,589 old test images it is right on 83.6 %, the model in use on 72.4 %: at worst 10.1 "
        "points won with 95% confidence, and 1 may be lost.",
    )


def test_what_forgets_the_old_is_refused_however_good_it_is_on_the_new():
    promoted, said = rule(Comparison(30, 28, 10, 18, 0), Comparison(3589, 2480, 2600, 100, 220))
    assert not promoted
    assert said.endswith("at worst 4.2 points lost with 95% confidence, but only 1 may be lost.")


def test_too_few_old_images_prove_nothing():
    same = Comparison(28, 20, 20, 0, 0)
    promoted, said = rule(Comparison(30, 28, 10, 18, 0), same)
    assert not promoted
    assert "at worst 8.8 points lost with 95% confidence; the images are too few to tell" in said
    assert rule(Comparison(30, 28, 10, 18, 0), same, old_margin_points=9)[0]


def test_nothing_held_out_is_refused():
    promoted, said = rule(Comparison(0, 0, 0, 0, 0), SAME_ON_OLD)
    assert not promoted
    assert said.startswith("None of the new images is held out")


def test_two_models_are_compared_image_by_image():
    ours, theirs = np.array([1, 1, 1, 0, 0], bool), np.array([1, 0, 0, 1, 0], bool)
    assert compare(ours, theirs) == Comparison(5, 3, 2, 2, 1)
    assert compare(ours, theirs).gain == pytest.approx(0.2)


def test_the_chance_of_a_gain_is_that_of_a_fair_coin():
    for won, lost in itertools.product(range(7), range(7)):
        tosses = list(itertools.product((0, 1), repeat=won + lost))
        assert chance_of_gain(won, lost) == sum(sum(toss) >= won for toss in tosses) / len(tosses)
    assert chance_of_gain(1800, 1789) == pytest.approx(0.43, abs=0.01)


@pytest.mark.parametrize("counts", [(28, 0, 0), (40, 9, 2), (40, 2, 9), (400, 30, 30), (10, 10, 0)])
def test_the_least_gain_is_where_the_score_test_by_brute_force_stops_refusing(counts):
    count, won, lost = counts
    bound = least_gain(Comparison(count, 0, 0, won, lost), confidence=0.95)

    def score(gain: float) -> float:
        """The definition: the variance where the likelihood is highest among all shares that agree with the gain."""
        shares_lost = np.linspace(max(-gain, 0) + 1e-9, (1 - gain) / 2 - 1e-9, 200_001)
        shares_won = shares_lost + gain
        rest = np.maximum(1 - shares_won - shares_lost, 1e-300)
        likelihood = won * np.log(shares_won) + lost * np.log(shares_lost) + (count - won - lost) * np.log(rest)
        best = likelihood.argmax()
        variance = count * (shares_won[best] + shares_lost[best] - gain**2)
        return (won - lost - count * gain) / math.sqrt(variance)

    assert score(bound) == pytest.approx(NormalDist().inv_cdf(0.95), abs=2e-3)
    assert bound < (won - lost) / count
    assert least_gain(Comparison(10, 0, 10, 0, 10), confidence=0.95) == -1


# Which labelled images are learned, which judge.


def images_of(grays: Sequence[np.ndarray], labels: Sequence[int], paths: Sequence[str]) -> LabelledImages:
    gray = np.array(grays, np.uint8).reshape(-1, 48, 48)
    nothing = np.zeros((len(gray), 7), np.float32)
    return LabelledImages(
        tuple(paths), gray, np.array(labels, np.int64), nothing, np.zeros(len(gray), bool), tuple(map(digest_of, gray))
    )


def noise(seed: int) -> np.ndarray:
    return cv2.resize(np.random.default_rng(seed).integers(0, 256, (12, 12)).astype(np.uint8), (48, 48))


def old_splits(*train_images: np.ndarray, test: Sequence[np.ndarray] = ()) -> DataSplits:
    def images(grays: Sequence[np.ndarray]) -> LabelledImages:
        return images_of(grays, [0] * len(grays), [f"old/{index}" for index in range(len(grays))])

    nothing = Finding(0, ())
    report = DataReport((), nothing, {}, nothing, nothing, nothing, LeftOut(0, 0, 0, 0))
    return DataSplits(images(train_images), images([noise(9001)]), images(test or [noise(9002)]), report, "0" * 64)


def names(images: LabelledImages) -> set[str]:
    return set(images.paths)


def test_an_image_is_held_out_or_learned_for_good_whatever_comes_later():
    drops = images_of([noise(seed) for seed in range(200)], [3] * 200, [f"happy/{seed}.jpg" for seed in range(200)])
    nothing = LabelledRecord()
    all_at_once = split_labelled(drops, nothing, old_splits(noise(8000)), holdout_share=0.3)
    assert 40 <= len(all_at_once.held_out) <= 80
    assert len(all_at_once.learned) + len(all_at_once.held_out) == 200 == all_at_once.new_count
    first = images_of(drops.images_gray[:50], drops.labels[:50], drops.paths[:50])
    assert names(split_labelled(first, nothing, old_splits(noise(8000)), holdout_share=0.3).held_out) == {
        path for path in all_at_once.held_out.paths if path in drops.paths[:50]
    }


def test_all_faces_of_a_video_are_learned_or_held_out_together():
    paths = [f"happy/talk~{video:016x}~f{frame:06d}~t0.jpg" for video in range(30) for frame in range(0, 40, 10)]
    drops = images_of([noise(seed) for seed in range(len(paths))], [3] * len(paths), paths)
    split = split_labelled(drops, LabelledRecord(), old_splits(noise(8000)), holdout_share=0.3)

    def videos(images: LabelledImages) -> set[str]:
        return {path.split("~")[1] for path in images.paths}

    assert videos(split.held_out)
    assert videos(split.held_out) & videos(split.learned) == set()


def test_a_photo_that_is_in_the_old_data_is_of_no_use_whatever_its_label():
    brighter = np.clip(noise(1).astype(int) + 12, 0, 255).astype(np.uint8)
    drops = images_of([noise(1), brighter, noise(2), noise(3)], [3, 4, 3, 3], ["a", "b", "c", "d"])
    old = old_splits(noise(1), test=[noise(2)])
    split = split_labelled(drops, LabelledRecord(), old, holdout_share=1e-9)
    assert names(split.left_out) == {"a", "b", "c"}
    assert names(split.learned) == {"d"}


def test_what_is_learned_and_what_judges_never_share_a_photo():
    originals = [noise(seed) for seed in range(60)]
    twins = [np.clip(image.astype(int) + 3, 0, 255).astype(np.uint8) for image in originals]
    paths = [f"{kind}/{index}" for kind in ("original", "twin") for index in range(60)]
    split = split_labelled(
        images_of(originals + twins, [3] * 120, paths), LabelledRecord(), old_splits(noise(8000)), holdout_share=0.5
    )

    def photos(images: LabelledImages) -> set[str]:
        return {path.split("/")[1] for path in images.paths}

    assert photos(split.learned) & photos(split.held_out) == set()
    assert len(split.left_out) > 10


def test_what_a_model_has_learned_is_learned_again_and_never_judges_its_successor():
    drops = images_of([noise(seed) for seed in range(40)], [3] * 40, [f"happy/{seed}" for seed in range(40)])
    keys = [f"happy:{digest}" for digest in drops.digests]
    # Half was learned, a quarter has judged; then somebody asks for a larger share to be held out.
    record = LabelledRecord(learned=frozenset(keys[:20]), held_out=frozenset(keys[20:30]))
    split = split_labelled(drops, record, old_splits(noise(8000)), holdout_share=0.999)
    assert split.new_count == 10
    assert names(split.held_out) == set(drops.paths[30:])
    assert names(split.learned) == set(drops.paths[:20])
    # A corrected label makes it another fact, but the photo was learned already, so it is learned anew.
    corrected = dataclasses.replace(drops, labels=np.array([4] + [3] * 39))
    split = split_labelled(corrected, record, old_splits(noise(8000)), holdout_share=0.999)
    assert names(split.learned) == set(drops.paths[:20])
    assert names(split.held_out) == set(drops.paths[30:])


# The whole way.


@dataclass(frozen=True, slots=True)
class World:
    """What a user has: old data, a store whose model was trained on it, a folder for labelled faces."""

    data: Path
    store: ModelStore
    labelled: Path
    base: str

    def settings(self, **changes: object) -> RetrainSettings:
        """For 28 old test images, which can tell no less than 8.8 points."""
        few = {"min_new_images": 20, "replay_per_new": 2, "batch_size": 16}
        few |= {"epochs": 8, "learning_rate": 0.01, "kept_share": 0.25}
        limits = {"old_margin_points": 25, "settle_seconds": 0}
        where = {"labelled": self.labelled, "data": self.data}
        return load_retrain_settings(None, **few | limits | where | changes)

    def drop(self, pattern: np.ndarray, emotions: Sequence[str], *, seed: int) -> None:
        rng = np.random.default_rng(seed)
        for number, emotion in enumerate(emotions):
            path = self.labelled / emotion / f"{seed}_{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), grained(pattern, rng))


def grained(pattern: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """With noise strong enough that no two pass for the same photo."""
    return np.clip(pattern + cv2.resize(rng.normal(0, 45, (16, 16)), (48, 48)), 0, 255).astype(np.uint8)


def make_pattern(rng: np.random.Generator) -> np.ndarray:
    """Symmetric, because training mirrors it."""
    half = rng.integers(0, 256, (5, 3)).astype(np.uint8)
    return cv2.resize(np.hstack([half, half[:, ::-1]]), (48, 48))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Seven patterns, one an emotion, in FER2013's layout, and a model that tells them apart."""
    folder = tmp_path_factory.mktemp("patterns")
    rng = np.random.default_rng(0)
    patterns = [make_pattern(rng) for _ in EMOTIONS]
    for name, copies in (("train/{}/Training", 16), ("test/{}/PublicTest", 4), ("test/{}/PrivateTest", 4)):
        for emotion, pattern in zip(EMOTIONS, patterns, strict=True):
            for copy in range(copies):
                path = folder / f"{name.format(emotion)}_{copy}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(path), grained(pattern, rng))
    run = tmp_path_factory.mktemp("run")
    config = run / "smoke.toml"
    # Crops of one size: for each, TensorFlow takes seconds to prepare itself.
    text = (CONFIGS / "smoke.toml").read_text().replace("[32, 48]", "[48]").replace("[0.5, 0.5]", "[1.0]")
    config.write_text(text)
    return folder, train(folder, config, run)


@pytest.fixture
def world(trained: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    data, model = trained
    monkeypatch.setenv(MODELS_VARIABLE, str(tmp_path / "models"))
    shutil.copytree(model, tmp_path / "models" / model.name)
    store = ModelStore()
    store.promote(model.name)
    (tmp_path / "labelled").mkdir()
    return World(data, store, tmp_path / "labelled", model.name)


NEW_PATTERN = make_pattern(np.random.default_rng(77))


def test_labelled_faces_may_lie_in_a_bucket(bucket, world, tmp_path, monkeypatch):
    monkeypatch.setenv("FERFLOW_CACHE", str(tmp_path / "cache"))
    # Seen to fail with the usual time to settle: what was just fetched was taken for still being written.
    settings = world.settings(labelled=bucket / "labelled", min_new_images=2, settle_seconds=30)
    world.drop(NEW_PATTERN, ["happy"] * 3, seed=9)
    for path in world.labelled.rglob("*.png"):
        (bucket / "labelled" / "happy" / path.name).write_bytes(path.read_bytes())
    assert count_new_images(settings, world.store) == 3


def test_a_better_candidate_is_promoted_and_the_next_video_says_so_and_a_rollback_goes_back(
    world: World, make_video: Callable[..., Path], astronaut: np.ndarray, tmp_path: Path
) -> None:
    # A kind of face that the model in use has never seen.
    world.drop(NEW_PATTERN, ["surprise"] * 40, seed=1)
    before = {path: path.stat().st_mtime_ns for path in world.labelled.rglob("*")}
    assert count_new_images(world.settings(), world.store) == 40

    def interrupt(epoch: Epoch) -> None:
        if epoch.number == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        retrain(world.settings(), world.store, on_epoch=interrupt)
    assert world.store.in_use().name == world.base
    seen: list[int] = []
    done = retrain(world.settings(), world.store, on_epoch=lambda epoch: seen.append(epoch.number))
    assert seen == [4, 5, 6, 7, 8]

    assert done is not None
    verdict, version = done.verdict, done.directory.name
    assert verdict.decision == "promoted", verdict.reasons
    assert (verdict.compared_with, world.store.in_use()) == (world.base, done.directory)
    assert verdict.comparison["new"]["image_count"] == verdict.comparison["new"]["candidate_right"] > 5
    assert read_retraining(done.directory) == dataclasses.replace(
        done, verdict=dataclasses.replace(verdict, decided_at=verdict.decided_at.replace(microsecond=0))
    )
    description = read_description(done.directory)
    record = record_of(description)
    assert description.data["parent"] == world.base
    assert len(record.learned) + len(record.held_out) == 40
    assert str(tmp_path) not in (done.directory / DESCRIPTION_FILE).read_text()
    assert {path.name for path in done.directory.glob("*.png")} == {"curves.png", "confusion.png", "reliability.png"}
    # Nothing that was dropped is touched, and nothing is left of the work.
    assert {path: path.stat().st_mtime_ns for path in world.labelled.rglob("*")} == before
    assert [path.name for path in (world.store.root / WORK_FOLDER).iterdir()] == ["lock"]
    # A model of before says of no file that it was looked at.
    older = dict(description.data["labelled"])
    del older["files"]
    assert record_of(dataclasses.replace(description, data={"labelled": older})).learned == record.learned
    # What was seen is not new again, and one more is.
    assert count_new_images(world.settings(), world.store) == 0
    assert retrain(world.settings(), world.store) is None
    world.drop(NEW_PATTERN, ["surprise"], seed=2)
    assert count_new_images(world.settings(), world.store) == 1
    assert count_new_images(world.settings(min_new_images=1), world.store) == 1

    clip = make_video(tmp_path / "clip.mp4", frame_count=3, image=astronaut)
    assert analyze(clip, tmp_path / "results") == {table: {version} for table in TABLES}
    assert world.store.rollback() == world.base
    assert analyze(clip, tmp_path / "results") == {table: {world.base} for table in TABLES}


def test_a_model_of_another_kind_than_its_recipe_says_is_not_trained_further(world: World) -> None:
    path = world.store.in_use() / DESCRIPTION_FILE
    table = json.loads(path.read_text())
    world.drop(NEW_PATTERN, ["sad"] * 20, seed=4)
    for change in ({"network": table["recipe"]["network"] | {"widths": [8, 16, 24]}}, {"network": {"widths": [8]}}):
        path.write_text(json.dumps(table | {"recipe": table["recipe"] | change}))
        with pytest.raises(ModelError, match="this model is in use, but cannot be trained further"):
            retrain(world.settings(), world.store)


def test_the_model_that_comes_with_ferflow_can_be_trained_further() -> None:
    shipped = shipped_model()
    recipe = gentle_recipe(read_description(shipped), shipped, load_retrain_settings(None))
    assert recipe.schedule.epochs == RetrainSettings.model_fields["epochs"].default
    assert starting_weights(shipped, recipe)


def test_of_the_model_in_use_as_much_is_kept_as_the_settings_say() -> None:
    shipped = shipped_model()
    for share, teachers in ((0.25, (shipped.name,)), (0.0, ())):
        recipe = gentle_recipe(read_description(shipped), shipped, load_retrain_settings(None, kept_share=share))
        assert (recipe.targets.teachers, recipe.targets.teachers_share) == (teachers, share)
        assert recipe.schedule.start_share == share
        # What answers to the crowd's votes is not saved with a model, and new faces have no votes.
        assert recipe.targets.votes_head == 0.0


def test_a_second_retraining_is_refused_while_one_is_under_way_and_a_killed_one_leaves_no_lock(world: World) -> None:
    work = world.store.root / WORK_FOLDER
    work.mkdir()
    ready, stop = os.pipe(), os.pipe()
    other = os.fork()
    if other == 0:
        # Only system calls: this copy of the process is killed while it holds the lock.
        descriptor = os.open(work / "lock", os.O_CREAT | os.O_WRONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.write(ready[1], b"x")
        os.read(stop[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    try:
        with pytest.raises(ConfigError, match="another retraining of these models is under way"):
            retrain(world.settings(), world.store)
    finally:
        os.kill(other, 9)
        os.waitpid(other, 0)
        for descriptor in (*ready, *stop):
            os.close(descriptor)
    assert retrain(world.settings(), world.store) is None


def test_files_that_are_still_being_written_are_left_alone(world: World) -> None:
    world.drop(NEW_PATTERN, ["happy"] * 3, seed=6)
    patient = world.settings(settle_seconds=1.0, min_new_images=1)
    path = world.labelled / "happy" / "6_0.png"
    # Copied with the time of its original, as file managers do.
    os.utime(path, (0, 0))
    assert count_new_images(patient, world.store) == 0
    time.sleep(1.1)
    path.touch()
    assert count_new_images(patient, world.store) == 2


def test_faces_are_new_wherever_their_folder_was_moved_from_or_renamed_to(world: World, tmp_path: Path) -> None:
    """Seen to fail: the system does not note on a file that its folder was moved."""
    world.drop(NEW_PATTERN, ["sad"] * 4, seed=10)
    world.drop(NEW_PATTERN, ["Trauer"] * 3, seed=11)
    (world.labelled / "sad").rename(tmp_path / "sad")
    world.drop(NEW_PATTERN, ["happy"] * 12, seed=12)
    settings = world.settings(min_new_images=1, epochs=1)
    assert retrain(settings, world.store) is not None
    assert count_new_images(settings, world.store) == 0
    (tmp_path / "sad").rename(world.labelled / "sad")
    (world.labelled / "Trauer").rename(world.labelled / "fear")
    assert count_new_images(settings, world.store) == 7
    assert count_new_images(world.settings(min_new_images=100), world.store) == 7


def test_what_was_taken_into_use_during_a_retraining_stays(world: World) -> None:
    """Seen to fail: the candidate was promoted over a model that it was never compared with."""
    world.drop(NEW_PATTERN, ["surprise"] * 40, seed=1)
    by_hand = shipped_model()

    def promote(epoch: Epoch) -> None:
        if epoch.number == 1:
            world.store.promote(by_hand.name)

    with pytest.raises(ConfigError, match=f"{by_hand.name} was taken into use in place of {world.base}"):
        retrain(world.settings(), world.store, on_epoch=promote)
    assert world.store.in_use() == by_hand
    assert count_new_images(world.settings(), world.store) == 40
    with pytest.raises(ModelError, match=f"it was to replace {world.base}, but {by_hand.name} was taken into use"):
        world.store.promote(world.base, in_place_of=world.base)


def test_few_new_files_are_counted_without_being_opened(world: World) -> None:
    folder = world.labelled / "happy"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.png").write_bytes(b"no image")
        (folder / f"{number}.txt").write_bytes(b"no picture")
    assert count_new_images(world.settings(min_new_images=6), world.store) == 5
    assert count_new_images(world.settings(min_new_images=5), world.store) == 0


def test_what_was_judged_better_before_the_process_was_killed_is_promoted_the_next_time(
    world: World, two_models: tuple[Path, Path]
) -> None:
    for model, decided in zip(two_models, ("refused", "promoted"), strict=True):
        shutil.copytree(model, world.store.root / model.name)
        verdict = Verdict(decided, ("A reason.",), {}, datetime(2026, 1, 1, tzinfo=UTC), world.base)
        world.store.keep_verdict(model.name, verdict)
    assert retrain(world.settings(), world.store) is None
    assert world.store.in_use().name == two_models[1].name
    world.store.rollback()
    assert retrain(world.settings(), world.store) is None
    assert world.store.in_use().name == world.base


def test_what_is_not_there_is_said_in_a_sentence(world: World) -> None:
    with pytest.raises(DataError, match=r"gone: there is no such folder\. Make it, with a folder for each emotion"):
        retrain(world.settings(labelled=world.labelled / "gone"), world.store)
    world.drop(NEW_PATTERN, ["happy"] * 20, seed=8)
    with pytest.raises(DataError, match="nowhere: there is no such folder"):
        retrain(world.settings(data=world.labelled / "nowhere"), world.store)


def test_new_images_that_are_all_in_the_old_data_start_nothing(world: World) -> None:
    shutil.copytree(world.data / "train" / "happy", world.labelled / "happy")
    with pytest.raises(DataError, match="of 16 new images none is left to learn from; 0 are held out"):
        retrain(world.settings(min_new_images=16), world.store)


def test_the_settings_file_says_every_setting_with_its_explanation() -> None:
    head, *paragraphs = (CONFIGS / "retrain.toml").read_text(encoding="utf-8").split("\n\n")
    assert head.startswith("# ")
    expected = [
        f"# {field.description}\n{name} = "
        + json.dumps(str(field.default) if isinstance(field.default, Path) else field.default)
        for name, field in RetrainSettings.model_fields.items()
    ]
    assert [paragraph.strip() for paragraph in paragraphs] == expected
    assert load_retrain_settings(CONFIGS / "retrain.toml") == load_retrain_settings(None)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"holdout_share": 0}, "holdout_share = 0 has no meaning: input should be greater than 0."),
        ({"epoch": 3}, "there is no setting epoch; did you mean epochs?"),
        ({"min_new_images": "many"}, "min_new_images = 'many' has no meaning"),
    ],
)
def test_settings_without_meaning_are_refused_in_one_sentence(change: dict[str, object], complaint: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        load_retrain_settings(None, **change)
    assert complaint in str(refusal.value)


def analyze(clip: Path, folder: Path) -> dict[str, set[str]]:
    """The versions that the rows of its result name, by the table."""

    class Deaf:
        def stage(self, job, name, done, expected) -> None: ...

        def copied(self, job) -> None: ...

        def elsewhere(self, job) -> None: ...

        def finished(self, job, summary) -> None: ...

    results = open_results(folder)
    analyze_in_process(find_videos([clip]), results, settings=Settings(), force=False, workers=1, listener=Deaf())
    rows = {table: pq.ParquetDataset(results.table(table)).read(["model_version"]) for table in TABLES}
    return {table: set(versions["model_version"].to_pylist()) for table, versions in rows.items()}
