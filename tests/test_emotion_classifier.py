"""models/emotion_classifier.py, models/emotion_cnn.py and the model that comes with ferflow."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from ferflow.emotions import EMOTIONS, EmotionClassifier
from ferflow.errors import ModelError
from ferflow.faces import Framing, resize_faces
from models.emotion_classifier import (
    DESCRIPTION_FILE,
    KERAS_FILE,
    LITERT_FILE,
    EmotionModel,
    ModelDescription,
    load_network,
    read_description,
    save_model,
)
from models.emotion_cnn import build_emotion_cnn
from models.store import shipped_model
from training.dataset import load_splits
from training.fit import evaluate

ROOT = Path(__file__).parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data" / "fer2013.tar.gz"
COMMITTED = shipped_model()

# Keras 3.15 hands numpy 2.4 tensors whose __array__ takes no copy keyword.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

DESCRIPTION = ModelDescription(
    name="tiny",
    crop_size_px=48,
    temperature=1.3,
    framing=Framing(side_per_box=1.1, down_per_box=0.05, is_levelled=True),
    commit=None,
    recipe={"epochs": 0},
    data={},
    metrics={},
    history=[{"number": 1}],
)


def random_crops(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 48, 48)).astype(np.uint8)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny network with random weights, saved."""
    import keras

    keras.utils.set_random_seed(3)
    network = build_emotion_cnn(widths=(8, 16), blocks=(0, 1), temperature=1.3)
    parent = tmp_path_factory.mktemp("models")
    directory = save_model(parent, network, description=DESCRIPTION)
    assert [path.name for path in parent.iterdir()] == [directory.name], "something half written was left behind"
    return directory


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    """The same, to be spoiled."""
    return Path(shutil.copytree(saved, tmp_path / "copied"))


def test_what_was_said_of_a_model_is_read_back(saved: Path) -> None:
    description = read_description(saved)
    by_saving = {
        name: getattr(DESCRIPTION, name) for name in ("version", "keras_version", "sha256", "saved_at", "served_in")
    }
    assert dataclasses.replace(description, **by_saving) == DESCRIPTION
    saved_at = datetime.fromisoformat(description.saved_at)
    assert timedelta(0) <= datetime.now(UTC) - saved_at < timedelta(hours=1)
    assert saved.name == description.version
    assert description.version.startswith("tiny-")
    model = EmotionModel(saved)
    assert (model.version, model.crop_size_px, model.framing) == (description.version, 48, DESCRIPTION.framing)


def test_keras_and_litert_give_the_same_probabilities(saved: Path) -> None:
    crops = random_crops(40)
    keras_scores = load_network(saved).predict(crops[..., np.newaxis], verbose=0)
    assert np.abs(EmotionModel(saved).classify(crops) - keras_scores).max() < 2e-3


def test_the_same_weights_saved_again_are_the_same_version(saved: Path, tmp_path: Path) -> None:
    network = load_network(saved)
    assert save_model(tmp_path, network, description=DESCRIPTION).name == saved.name
    save_model(tmp_path, network, description=DESCRIPTION)
    assert [path.name for path in tmp_path.iterdir()] == [saved.name]
    weights = network.get_weights()
    network.set_weights([weights[0] + 1e-3, *weights[1:]])
    assert save_model(tmp_path, network, description=DESCRIPTION).name != saved.name


@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 100])
def test_any_number_of_crops_is_scored_each_as_if_alone(saved: Path, count: int) -> None:
    model: EmotionClassifier = EmotionModel(saved)
    crops = random_crops(100)[:count]
    scores = model.classify(crops)
    assert scores.shape == (count, 7)
    assert scores.dtype == np.float32
    assert scores.sum(axis=1) == pytest.approx(np.ones(count), abs=1e-5)
    for index in {0, count // 2, count - 1} if count else ():
        assert model.classify(crops[index : index + 1])[0] == pytest.approx(scores[index], abs=1e-5)


def test_a_view_that_is_not_contiguous_scores_like_its_copy(saved: Path) -> None:
    crops = random_crops(6)
    mirrored = crops[::2, :, ::-1]
    model = EmotionModel(saved)
    assert np.array_equal(model.classify(mirrored), model.classify(np.ascontiguousarray(mirrored)))


@pytest.mark.parametrize("value", [0, 128, 255])
def test_a_blank_crop_gives_probabilities_too(saved: Path, value: int) -> None:
    scores = EmotionModel(saved).classify(np.full((1, 48, 48), value, np.uint8))
    assert np.isfinite(scores).all()
    assert scores.sum() == pytest.approx(1)


def test_a_face_in_dim_light_scores_like_the_same_in_bright_light(saved: Path) -> None:
    bright = random_crops(1)
    dim = (bright.astype(np.float32) * 0.5).round().astype(np.uint8)
    model = EmotionModel(saved)
    assert model.classify(dim) == pytest.approx(model.classify(bright), abs=0.02)


@pytest.mark.parametrize(
    "crops",
    [np.zeros((2, 32, 32), np.uint8), np.zeros((48, 48), np.uint8), np.zeros((2, 48, 48), np.float32)],
    ids=["another size", "one image", "another type"],
)
def test_other_crops_are_refused(saved: Path, crops: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"not uint8 \(n, 48, 48\)"):
        EmotionModel(saved).classify(crops)


def test_threads_that_share_a_model_get_their_own_answers(saved: Path) -> None:
    model = EmotionModel(saved)
    batches = [random_crops(count) for count in (3, 40, 17, 64)]
    alone = [model.classify(batch) for batch in batches]
    together: dict[int, np.ndarray] = {}

    def classify(index: int) -> None:
        for _ in range(5):
            together[index] = model.classify(batches[index])

    threads = [threading.Thread(target=classify, args=(index,)) for index in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, expected in enumerate(alone):
        assert np.array_equal(together[index], expected)


def test_serving_a_model_does_not_import_tensorflow(saved: Path) -> None:
    code = (
        "import sys, numpy as np; from pathlib import Path; from models.emotion_classifier import EmotionModel;"
        f"EmotionModel(Path({str(saved)!r})).classify(np.zeros((2, 48, 48), np.uint8));"
        "sys.exit(any(name in sys.modules for name in ('tensorflow', 'keras', 'torch', 'jax')))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("file", [DESCRIPTION_FILE, LITERT_FILE])
def test_a_missing_file_is_named(copied: Path, file: str) -> None:
    (copied / file).unlink()
    with pytest.raises(ModelError, match=f"{file}.*No such file"):
        EmotionModel(copied)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nowhere: it holds no readable"):
        EmotionModel(tmp_path / "nowhere")


def test_weights_that_are_not_the_described_ones_are_refused(copied: Path) -> None:
    for file, load in ((LITERT_FILE, EmotionModel), (KERAS_FILE, load_network)):
        content = bytearray((copied / file).read_bytes())
        content[len(content) // 2] ^= 1
        (copied / file).write_bytes(content)
        with pytest.raises(ModelError, match=f"{file}: it is not the file that model.json describes"):
            load(copied)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"emotions": ["angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"]}, "was trained for angry"),
        ({"emotions": [*EMOTIONS, "contempt"]}, "was trained for angry"),
        ({"framing": {"side_per_box": 1.0}}, "is damaged"),
        ({"framing": None}, "is damaged"),
        ({"crop_size_px": 64}, r"maps \[-1, 48, 48, 1\]"),
        ({"crop_size_px": 10**9}, "crop_size_px is 1000000000, but it must be a whole number from 16 to 512"),
        ({"crop_size_px": "48"}, "crop_size_px is '48'"),
        ({"crop_size_px": True}, "crop_size_px is True"),
        ({"temperature": float("nan")}, "temperature is nan, but it must be a number above 0"),
        ({"temperature": 0}, "temperature is 0"),
        ({"temperature": 10**400}, "temperature is 1000"),
        ({"notes": "Of our lab."}, "notes is 'Of our lab.', but it must be a list of texts"),
        ({"framing": {"side_per_box": 1e9, "down_per_box": 0, "is_levelled": True}}, "framing is Framing"),
        ({"framing": {"side_per_box": 1, "down_per_box": 0, "is_levelled": "yes"}}, "framing is Framing"),
        ({"version": "../../etc"}, "version is '../../etc', but it must be letters, digits"),
        ({"version": ".."}, "version is '..'"),
        ({"version": "a/b"}, "version is 'a/b'"),
        ({"version": ""}, "version is ''"),
        ({"version": "default"}, "version is 'default'"),
        ({"version": "x" * 1000}, "version is 'xxx"),
        ({"sha256": []}, r"sha256 is \[\], but it must be a table"),
        ({"metrics": None}, "metrics is None, but it must be a table"),
        ({"keras_version": "new"}, "keras_version is 'new', but it must be a version like 3.15.1"),
        ({"commit": 1}, "commit is 1"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(copied: Path, change: dict[str, object], message: str) -> None:
    path = copied / DESCRIPTION_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelError, match=message):
        EmotionModel(copied)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "is damaged"), ("[]", "is damaged"), ("{}", "does not say 'name'")]
)
def test_a_damaged_description_is_refused(copied: Path, text: str, message: str) -> None:
    (copied / DESCRIPTION_FILE).write_text(text)
    with pytest.raises(ModelError, match=message):
        EmotionModel(copied)


def test_a_model_that_a_newer_keras_wrote_is_refused_in_a_sentence(copied: Path) -> None:
    import keras

    path = copied / DESCRIPTION_FILE
    table = json.loads(path.read_text())
    major, minor = keras.__version__.split(".")[:2]
    for newer in (f"{major}.{int(minor) + 1}.0", f"{int(major) + 1}.0"):
        path.write_text(json.dumps(table | {"keras_version": newer}))
        with pytest.raises(ModelError, match=f"Keras {newer} wrote it, which is newer than the {keras.__version__}"):
            load_network(copied)
    for older in (f"{major}.{minor}.99", f"{major}.0.1", "2.15.0"):
        path.write_text(json.dumps(table | {"keras_version": older}))
        load_network(copied)


def test_a_description_that_never_ends_is_refused(copied: Path) -> None:
    """Seen to fail: a number of 5,000 digits was a traceback."""
    path = copied / DESCRIPTION_FILE
    for endless in ("[" * 100_000, f'{{"x": {"1" * 5_000}}}'):
        path.write_text(endless)
        with pytest.raises(ModelError, match="is damaged"):
            read_description(copied)
    path.write_text(" " * 10_000_001)
    with pytest.raises(ModelError, match=f"{DESCRIPTION_FILE}: it has 10 MB, and no model of ferflow has more"):
        read_description(copied)


def test_a_model_of_an_older_version_of_ferflow_is_read(copied: Path) -> None:
    path = copied / DESCRIPTION_FILE
    table = json.loads(path.read_text())
    del table["saved_at"], table["class_biases"]
    path.write_text(json.dumps(table))
    assert (read_description(copied).saved_at, read_description(copied).class_biases) == ("", {})


def test_a_model_file_cannot_run_code(copied: Path) -> None:
    import hashlib

    import keras

    inputs = keras.Input((48, 48, 1))
    keras.Model(inputs, keras.layers.Lambda(lambda x: x)(inputs)).save(copied / KERAS_FILE)
    path = copied / DESCRIPTION_FILE
    table = json.loads(path.read_text())
    table["sha256"][KERAS_FILE] = hashlib.sha256((copied / KERAS_FILE).read_bytes()).hexdigest()
    path.write_text(json.dumps(table))
    with pytest.raises(ModelError, match="Lambda"):
        load_network(copied)


def test_the_committed_model_is_small_and_says_what_it_is() -> None:
    description = read_description(COMMITTED)
    assert COMMITTED.name == description.version
    assert (COMMITTED / KERAS_FILE).stat().st_size < 10_000_000
    assert description.commit
    assert description.metrics["test"]["accuracy"] >= 0.71
    assert description.metrics["test"]["image_count"] == 3589


def test_the_committed_model_answers_alike_in_both_forms() -> None:
    model = EmotionModel(COMMITTED)
    crops = resize_faces(random_crops(64), model.crop_size_px)
    keras_scores = load_network(COMMITTED).predict(crops[..., np.newaxis], verbose=0)
    apart = np.abs(model.classify(crops) - keras_scores).max(axis=1)
    # int8 beside float32, on noise; on faces they are nearer to each other.
    assert (apart.mean() < 0.03, apart.max() < 0.1) == (True, True), apart


def test_the_scores_of_a_face_do_not_depend_on_its_batch() -> None:
    model = EmotionModel(COMMITTED)
    crops = resize_faces(random_crops(33), model.crop_size_px)
    crops[::3] //= 4
    together = model.classify(crops)
    assert np.array_equal(together, np.concatenate([model.classify(crops[n : n + 1]) for n in range(len(crops))]))


@pytest.mark.skipif(
    not SHARED_DATA.exists() and os.environ.get("CI") != "true", reason="needs FER2013, which has terms of its own"
)
def test_the_committed_model_is_as_good_as_it_says() -> None:
    model = EmotionModel(COMMITTED, num_threads=2)
    splits = load_splits(SHARED_DATA, leaks="leave_out")
    assert splits.sha256 == model.description.data["sha256"]
    measured = evaluate(model.classify_photos, splits)
    assert measured["test"]["accuracy"] >= 0.705
    for split, metrics in model.description.metrics.items():
        assert measured[split]["accuracy"] == pytest.approx(metrics["accuracy"], abs=0.003), split
        assert measured[split]["image_count"] == metrics["image_count"], split
