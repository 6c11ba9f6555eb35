"""training/fit.py and training/recipe.py: the real training code on a handful of images."""

import dataclasses
import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from ferflow.emotions import EMOTIONS
from ferflow.errors import ConfigError
from ferflow.faces import resize_faces
from models.emotion_classifier import EmotionModel, read_description
from models.trial import check_model
from training.checkpoint import Checkpoint, Epoch, read_checkpoint, write_checkpoint
from training.dataset import DataSplits, load_splits
from training.evaluation import evaluate
from training.fit import (
    CHECKPOINT_FILE,
    best_epoch,
    fit_network,
    has_stalled,
    rate_on_plateau,
    size_in_epoch,
    train,
    weights_of,
)
from training.machine import find_machine, precision_on_gpu, precision_on_processor
from training.recipe import OWN_STARTS, Recipe, load_recipe
from training.teachers import ask_teachers

CONFIGS = Path(__file__).parents[1] / "configs"

# Keras 3.15 hands numpy 2.4 tensors whose __array__ takes no copy keyword.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FER2013's layout with seven patterns, one an emotion, that a network tells apart in seconds."""
    folder = tmp_path_factory.mktemp("patterns")
    rng = np.random.default_rng(0)
    halves = [rng.integers(0, 256, (5, 3)).astype(np.uint8) for _ in EMOTIONS]
    # Symmetric, because training mirrors them.
    patterns = [cv2.resize(np.hstack([half, half[:, ::-1]]), (48, 48)) for half in halves]
    for name, copies in (("train/{}/Training", 16), ("test/{}/PublicTest", 4), ("test/{}/PrivateTest", 4)):
        for emotion, pattern in zip(EMOTIONS, patterns, strict=True):
            for copy in range(copies):
                path = folder / f"{name.format(emotion)}_{copy}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                # Noise strong enough that no two of a class pass for the same photo.
                grain = cv2.resize(rng.normal(0, 45, (16, 16)), (48, 48))
                cv2.imwrite(str(path), np.clip(pattern + grain, 0, 255).astype(np.uint8))
    return folder


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe(CONFIGS / "smoke.toml")


@pytest.fixture(scope="module")
def splits(data: Path) -> DataSplits:
    splits = load_splits(data)
    assert splits.report.left_out.leaked == 0
    return splits


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[Epoch]]:
    """Where a model of the small recipe was to be left, the model, and its epochs."""
    out, epochs = tmp_path_factory.mktemp("trained"), list[Epoch]()
    return out, train(data, CONFIGS / "smoke.toml", out, on_epoch=epochs.append), epochs


def test_training_learns_and_leaves_a_model_that_says_what_it_is(
    trained: tuple[Path, Path, list[Epoch]], splits: DataSplits, recipe: Recipe
) -> None:
    out, directory, epochs = trained
    assert [epoch.number for epoch in epochs] == list(range(1, 13))
    assert epochs[-1].train_loss < epochs[0].train_loss

    description = read_description(directory)
    assert directory == out / description.version
    assert description.version.startswith("smoke-")
    assert (directory / "MODEL_CARD.md").is_file()
    assert description.framing == recipe.framing
    assert description.data["sha256"] == splits.sha256
    assert description.data["images"]["train"] == dict.fromkeys(EMOTIONS, 16)
    assert len(description.history) == 12
    # Seven patterns: 0.14 by chance.
    assert description.metrics["test"]["accuracy"] > 0.5

    served = evaluate(EmotionModel(directory).classify, splits)
    # int8 beside float32: at most one of the 28 images is called otherwise.
    assert served["test"]["accuracy"] == pytest.approx(description.metrics["test"]["accuracy"], abs=0.04)
    assert served["test"]["log_loss"] == pytest.approx(description.metrics["test"]["log_loss"], rel=0.1)


@pytest.mark.parametrize("votes_head", [0.0, 0.5])
def test_an_interrupted_training_ends_like_an_unbroken_one(
    splits: DataSplits, recipe: Recipe, votes_head: float, tmp_path: Path
) -> None:
    recipe = dataclasses.replace(
        recipe,
        network=dataclasses.replace(recipe.network, dropout=0.3),
        schedule=dataclasses.replace(recipe.schedule, epochs=4),
        targets=dataclasses.replace(recipe.targets, votes_head=votes_head),
    )
    # Other threads draw of the process's chance too. Seen to fail: it decided where a training begins, what it drops.
    random.seed(1)
    unbroken_weights, unbroken = fit_network(splits, recipe, tmp_path / "unbroken")
    random.seed(2)

    def interrupt(epoch: Epoch) -> None:
        if epoch.number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_network(splits, recipe, tmp_path / "broken", on_epoch=interrupt)
    seen: list[int] = []
    weights, history = fit_network(
        splits, recipe, tmp_path / "broken", on_epoch=lambda epoch: seen.append(epoch.number)
    )
    assert seen == [3, 4]
    assert [epoch.number for epoch in history] == [1, 2, 3, 4]
    assert history[1].train_loss == pytest.approx(unbroken[1].train_loss, rel=1e-3)
    assert history[3].train_loss == pytest.approx(unbroken[3].train_loss, rel=0.02)
    for one, other in zip(weights, unbroken_weights, strict=True):
        assert np.abs(one - other).max() <= 0.02 * max(1.0, float(np.abs(other).max()))


def test_only_a_whole_checkpoint_of_this_recipe_is_gone_on_from(
    splits: DataSplits, recipe: Recipe, tmp_path: Path
) -> None:
    short = dataclasses.replace(recipe, schedule=dataclasses.replace(recipe.schedule, epochs=1))
    fit_network(splits, short, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.npz"]
    (tmp_path / "checkpoint.part").write_bytes(b"cut off")
    assert len(fit_network(splits, short, tmp_path)[1]) == 1
    with pytest.raises(ConfigError, match="belongs to another recipe"):
        fit_network(splits, recipe, tmp_path)


def test_a_head_for_the_votes_shapes_what_is_learned_and_is_not_kept(
    splits: DataSplits, recipe: Recipe, tmp_path: Path
) -> None:
    short = dataclasses.replace(recipe, schedule=dataclasses.replace(recipe.schedule, epochs=1))
    headed = dataclasses.replace(short, targets=dataclasses.replace(short.targets, votes_head=0.5))
    # Nobody voted on these images, so that the head learns their labels. Seen to fail: its loss was counted too.
    weights, plain = fit_network(splits, short, tmp_path / "plain")
    headed_weights, history = fit_network(splits, headed, tmp_path / "headed")
    assert [array.shape for array in headed_weights] == [array.shape for array in weights]
    assert any(not np.allclose(one, other, atol=1e-4) for one, other in zip(headed_weights, weights, strict=True))
    assert history[0].train_loss == pytest.approx(plain[0].train_loss, rel=0.15)


def test_adamw_trains_too(splits: DataSplits, recipe: Recipe, tmp_path: Path) -> None:
    schedule = dataclasses.replace(recipe.schedule, optimizer="adamw", warmup_epochs=0.5, epochs=4)
    _, history = fit_network(splits, dataclasses.replace(recipe, schedule=schedule), tmp_path)
    assert history[-1].train_loss < history[0].train_loss


def test_every_epoch_has_a_size_and_the_last_ones_the_networks_own(recipe: Recipe) -> None:
    schedule = dataclasses.replace(recipe.schedule, epochs=10, sizes_px=(32, 40, 48), size_shares=(0.36, 0.32, 0.32))
    assert [size_in_epoch(schedule, epoch) for epoch in range(1, 11)] == [32] * 4 + [40] * 3 + [48] * 3


def test_the_kind_this_project_began_with_trains_keeps_its_best_epoch_and_stops_on_a_plateau(
    splits: DataSplits, tmp_path: Path
) -> None:
    seed = load_recipe(CONFIGS / "seed.toml")
    network = dataclasses.replace(seed.network, widths=(8, 8), blocks=(1, 1))
    schedule = dataclasses.replace(seed.schedule, epochs=20, learning_rate=0.2, patience_epochs=1, stop_epochs=2)
    weights, history = fit_network(splits, dataclasses.replace(seed, network=network, schedule=schedule), tmp_path)
    assert len(history) == best_epoch(history) + 2 < 20
    checkpoint = next(tmp_path.iterdir())
    with np.load(checkpoint) as kept:
        kept_best = [kept[f"best_{index}"] for index in range(len(weights))]
        kept_last = [kept[f"average_{index}"] for index in range(len(weights))]
    assert all(np.array_equal(one, other) for one, other in zip(weights, kept_best, strict=True))
    assert not all(np.array_equal(one, other) for one, other in zip(weights, kept_last, strict=True))


def test_a_mobile_network_trains_on_small_crops_and_then_on_larger_ones(
    splits: DataSplits, recipe: Recipe, tmp_path: Path
) -> None:
    network = dataclasses.replace(recipe.network, kind="mobile")
    schedule = dataclasses.replace(recipe.schedule, epochs=2)
    _, history = fit_network(splits, dataclasses.replace(recipe, network=network, schedule=schedule), tmp_path)
    assert len(history) == 2


def test_a_finished_mobile_network_is_shown_faces_of_the_size_to_which_it_enlarges(
    trained: tuple[Path, Path, list[Epoch]], data: Path, splits: DataSplits, tmp_path: Path
) -> None:
    smoke = (CONFIGS / "smoke.toml").read_text()
    (tmp_path / "mobile.toml").write_text(smoke.replace('"residual"', '"mobile"').replace("epochs = 12", "epochs = 2"))
    directory = train(data, tmp_path / "mobile.toml", tmp_path / "out")
    check_model(directory)
    model, photos = EmotionModel(directory), splits.test.images_gray
    assert model.crop_size_px == 112
    with pytest.raises(ValueError, match=r"not uint8 \(n, 112, 112\)"):
        model.classify(photos)
    enlarged = np.stack([cv2.resize(photo, (112, 112), interpolation=cv2.INTER_LINEAR) for photo in photos])
    assert np.abs(resize_faces(photos, 112).astype(int) - enlarged).max() <= 1
    assert resize_faces(photos, 48) is photos
    assert model.classify_photos(photos) == pytest.approx(model.classify(enlarged), abs=0.02)
    served, measured = evaluate(model.classify_photos, splits)["test"], read_description(directory).metrics["test"]
    assert served["log_loss"] == pytest.approx(measured["log_loss"], rel=0.1)
    assert ask_teachers([directory, trained[1]], photos).shape == (len(photos), 7)
    assert weights_of(directory, load_recipe(tmp_path / "mobile.toml").network) is not None


def _history(*losses: float) -> list[Epoch]:
    return [Epoch(number, 1.0, 0.5, loss, 0.5, 1.0) for number, loss in enumerate(losses, start=1)]


def test_the_learning_rate_is_halved_each_time_the_loss_has_not_fallen_for_the_patience(recipe: Recipe) -> None:
    schedule = dataclasses.replace(recipe.schedule, learning_rate=0.8, patience_epochs=2, stop_epochs=3)
    rates = [rate_on_plateau(schedule, _history(*losses)) for losses in ((), (1,), (1, 1), (1, 2, 2), (1, 2, 2, 0.5))]
    assert rates == [0.8, 0.8, 0.8, 0.4, 0.4]
    assert rate_on_plateau(schedule, _history(1, 2, 2, 2, 2)) == 0.2
    assert not has_stalled(schedule, _history(3, 1, 2, 2))
    assert has_stalled(schedule, _history(3, 1, 2, 2, 2))
    assert not has_stalled(dataclasses.replace(schedule, stop_epochs=0), _history(*[1.0] * 50))


def test_the_arithmetic_follows_the_machine(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    assert precision_on_processor(cpuinfo) == "float32"
    cpuinfo.write_text("flags : fpu avx2 avx512_bf16 amx_tile")
    assert precision_on_processor(cpuinfo) == "mixed_bfloat16"
    assert [precision_on_gpu(it) for it in ((9, 0), (8, 6), (7, 5), (6, 1), None)] == [
        *("mixed_bfloat16", "mixed_bfloat16", "mixed_float16", "float32", "float32")
    ]
    assert find_machine().device


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_every_mixed_precision_trains_to_weights_in_float32(
    splits: DataSplits, recipe: Recipe, tmp_path: Path, precision: str
) -> None:
    schedule = dataclasses.replace(recipe.schedule, precision=precision, epochs=2, sizes_px=(48,), size_shares=(1.0,))
    weights, history = fit_network(splits, dataclasses.replace(recipe, schedule=schedule), tmp_path)
    assert {array.dtype for array in weights} == {np.dtype(np.float32)}
    assert np.isfinite([epoch.train_loss for epoch in history]).all()


def test_a_training_can_start_from_a_models_weights(splits: DataSplits, recipe: Recipe, tmp_path: Path) -> None:
    learned, history = fit_network(splits, recipe, tmp_path / "first")
    schedule = dataclasses.replace(recipe.schedule, epochs=1, learning_rate=1e-5, average_decay=0.0)
    gentle = dataclasses.replace(recipe, schedule=schedule)
    _, further = fit_network(splits, gentle, tmp_path / "further", start=learned)
    assert further[0].validation_loss == pytest.approx(history[-1].validation_loss, rel=0.1)
    with pytest.raises(ConfigError, match="belongs to another recipe"):
        fit_network(splits, gentle, tmp_path / "further")


def test_what_is_kept_may_lie_between_the_start_and_the_end(splits: DataSplits, recipe: Recipe, tmp_path: Path) -> None:
    schedule = dataclasses.replace(recipe.schedule, epochs=1)
    short = dataclasses.replace(recipe, schedule=schedule)
    start, _ = fit_network(splits, short, tmp_path / "start")
    halfway = dataclasses.replace(short, schedule=dataclasses.replace(schedule, start_share=0.25))
    kept, _ = fit_network(splits, halfway, tmp_path / "on", start=start)
    with np.load(tmp_path / "on" / CHECKPOINT_FILE) as checkpoint:
        ends = [checkpoint[f"average_{index}"] for index in range(len(kept))]
    for between, old, end in zip(kept, start, ends, strict=True):
        assert between == pytest.approx(0.25 * old + 0.75 * end, abs=1e-5)
    assert any(not np.allclose(old, end, atol=1e-3) for old, end in zip(start, ends, strict=True))


@pytest.fixture
def kept(tmp_path: Path) -> tuple[Path, Checkpoint]:
    """A checkpoint, and what was written to it."""
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in ((3, 3, 1, 4), (50, 100), ())]
    written = Checkpoint("any", (Epoch(1, 1.5, 0.4, 1.25, 0.5, 2.0),), arrays, arrays, arrays, [*arrays, np.array(7)])
    write_checkpoint(tmp_path / "checkpoint.npz", written)
    return tmp_path / "checkpoint.npz", written


DAMAGED: dict[str, Callable[[bytes], list[bytes]]] = {
    "another": lambda content: [b"half a file"],
    "empty": lambda content: [b""],
    "cut": lambda content: [content[:end] for end in range(len(content) - 1, 0, -997)],
    "a shorter array": lambda content: [content.replace(b"(50, 100)", b"(50, 10) ", 1)],
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_file_that_is_no_checkpoint_is_refused_with_a_sentence(kept: tuple[Path, Checkpoint], damage: str) -> None:
    """Seen to fail: an empty and a cut file were tracebacks, and a shorter array was read."""
    path, _ = kept
    assert read_checkpoint(path.with_name("none"), "any") is None
    content = path.read_bytes()
    for damaged in DAMAGED[damage](content):
        assert damaged != content
        path.write_bytes(damaged)
        with pytest.raises(ConfigError, match=r"is no checkpoint of a training, or damaged \(.+\)\. Remove this file"):
            read_checkpoint(path, "any")


def test_a_flipped_bit_in_a_checkpoint_is_refused_or_does_no_harm(kept: tuple[Path, Checkpoint]) -> None:
    """Seen to fail: most were tracebacks."""
    path, written = kept
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for place in [*rng.integers(len(content), size=300), *rng.integers(len(content) - 1200, len(content), size=1500)]:
        flipped = bytearray(content)
        flipped[place] ^= 1 << rng.integers(8)
        path.write_bytes(flipped)
        try:
            read = read_checkpoint(path, "any")
        except ConfigError:
            refused += 1
            continue
        assert read is not None
        assert read.history == written.history
        for group in ("weights", "average", "best", "optimizer"):
            for array, right in zip(getattr(read, group), getattr(written, group), strict=True):
                np.testing.assert_array_equal(array, right, strict=True)
    assert refused > 500


def test_a_model_is_taught_by_others_and_starts_from_another(
    trained: tuple[Path, Path, list[Epoch]], data: Path, splits: DataSplits, tmp_path: Path
) -> None:
    _, teacher, _ = trained
    smoke = (CONFIGS / "smoke.toml").read_text()
    taught = smoke.replace('start = "scratch"', f'start = "{teacher}"').replace("epochs = 12", "epochs = 1")
    taught = taught.replace("teachers = []", f'teachers = ["{teacher}"]').replace(
        "_share = 0.0\nleast", "_share = 1.0\nleast"
    )
    (tmp_path / "taught.toml").write_text(taught)
    epochs: list[Epoch] = []
    pupil = train(data, tmp_path / "taught.toml", tmp_path / "pupil", on_epoch=epochs.append)
    assert epochs[0].train_loss < read_description(teacher).history[0]["train_loss"], "it did not start from nothing"
    recipe = read_description(pupil).recipe
    assert (recipe["network"]["start"], recipe["targets"]["teachers"]) == (str(teacher), [str(teacher)])
    answers = ask_teachers([teacher, pupil], splits.test.images_gray)
    assert answers.sum(axis=1) == pytest.approx(np.ones(len(answers)), abs=1e-5)
    assert answers == pytest.approx(ask_teachers([pupil, teacher], splits.test.images_gray[..., ::-1]), abs=1e-5)
    (tmp_path / "other.toml").write_text(taught.replace("[8, 16, 32]", "[8, 16, 24]"))
    with pytest.raises(ConfigError, match="a network of another shape"):
        train(data, tmp_path / "other.toml", tmp_path / "other")


@pytest.mark.parametrize(
    "name", ["train", "distill", "mobile", "mobile_taught", "mobile_again", "mobile_again_taught", "smoke", "seed"]
)
def test_the_recipes_that_come_with_it_are_valid(name: str) -> None:
    recipe = load_recipe(CONFIGS / f"{name}.toml")
    assert json.loads(json.dumps(dataclasses.asdict(recipe)))["schedule"]["sizes_px"][-1] == 48


def test_every_model_that_a_recipe_names_comes_with_ferflow_or_is_made_by_another_recipe() -> None:
    texts = {path: path.read_text() for path in CONFIGS.glob("*.toml")}
    made = {
        version: path for path, text in texts.items() for version in re.findall(r"[ \n#]Made[ \n#]+(fer-[\w-]+)", text)
    }
    shipped = {path.parent.name for path in (CONFIGS.parent / "models" / "emotion").glob("*/model.json")}
    named = 0
    for path, text in texts.items():
        if "[network]" in text:
            recipe = load_recipe(path)
            for version in {recipe.network.start, *recipe.targets.teachers} - {*OWN_STARTS}:
                named += 1
                assert version in shipped or made[version] != path, (path, version)
    assert named > 10


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("batch_size", "batchsize", "no setting 'schedule.batchsize'. The nearest one is 'schedule.batch_size'"),
        ("[targets]", "[target]", "no setting 'target'. The nearest one is 'targets'"),
        ("dropout = 0.0", "", "the setting 'network.dropout' is missing"),
        ("epochs = 12", "epochs = 4.5", "'schedule.epochs' is 4.5, but it must be a int"),
        ("epochs = 12", "epochs = 0", "schedule.epochs and schedule.batch_size must be at least 1"),
        ("votes_head = 0.0", "votes_head = -0.5", "targets.votes_head must not be below 0"),
        ("mix = 0.0", "mix = -0.1", "augmentation.mix must not be below 0"),
        ("mix = 0.0", "mix = 0.0\nsurroundings = 2", "augmentation.surroundings must lie between 0 and 1"),
        ("mirror = 0.5", "mirror = true", "'augmentation.mirror' is True, but it must be a float"),
        ("mirror = 0.5", "mirror = 5", "augmentation.mirror must lie between 0 and 1"),
        ("[8, 16, 32]", "[8]", "network.widths and network.blocks must be equally long"),
        ("[32, 48]", "[48, 32]", "schedule.sizes_px must end with 48"),
        ('"muon"', '"sgd"', "schedule.optimizer must be one of muon, adamw, adam"),
        ('"cosine"', '"step"', "schedule.decay must be one of cosine, plateau"),
        ('"last"', '"first"', "schedule.keep must be one of last, best"),
        ('"last"', '"last"\nstart_share = 0.5', "start_share must be 0 for a network that starts from no model"),
        ('"residual"', '"transformer"', "network.kind must be one of mobile, residual, sequential"),
        ('"scratch"', '"face_network"', "network.start may be 'face_network' for a mobile network only"),
        ("teachers = []", "teachers = [1]", "'targets.teachers' is 1, but it must be a str"),
        ("teachers_share = 0.0", "teachers_share = 0.5", "targets.teachers must name a model"),
        ("= 1e-2", "= ", "not valid TOML"),
    ],
)
def test_a_recipe_with_a_mistake_is_refused_by_file_and_key(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = (CONFIGS / "smoke.toml").read_text()
    assert text.count(old) >= 1
    path = tmp_path / "mistaken.toml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError) as refusal:
        load_recipe(path)
    assert message in str(refusal.value)
    assert str(refusal.value).startswith(str(path))


def test_settings_that_came_later_are_off_where_a_recipe_does_not_name_them(tmp_path: Path) -> None:
    """Seen to fail before: a model that was trained earlier could not be trained further."""
    text = (CONFIGS / "smoke.toml").read_text()
    earlier = "".join(line for line in text.splitlines(True) if not line.startswith(("votes_head", "surroundings")))
    (tmp_path / "earlier.toml").write_text(earlier)
    recipe = load_recipe(tmp_path / "earlier.toml")
    assert (recipe.targets.votes_head, recipe.augmentation.surroundings) == (0.0, 0.0)


def test_a_recipe_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_recipe(tmp_path / "nowhere.toml")
