"""training/figures.py: pictures are files that a person opens, so they are looked at as files."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from ferflow.emotions import EMOTIONS
from training.data_report import DataReport, Finding, LeftOut
from training.dataset import DataSplits, LabelledImages
from training.figures import draw_confusion, draw_curves, draw_figures, draw_mistakes, draw_reliability
from training.metrics import measure

ROOT = Path(__file__).parents[1]
NAMES = ["curves.png", "confusion.png", "reliability.png", "mistakes.png"]


def make_images(count: int) -> LabelledImages:
    rng = np.random.default_rng(0)
    return LabelledImages(
        paths=tuple(f"{row}.png" for row in range(count)),
        images_gray=rng.integers(0, 256, (count, 48, 48)).astype(np.uint8),
        labels=np.arange(count) % len(EMOTIONS),
        votes=np.zeros((count, 7), np.float32),
        seen_in_training=np.zeros(count, bool),
        digests=tuple(f"{row:016x}" for row in range(count)),
    )


def make_splits(test: LabelledImages) -> DataSplits:
    nothing = Finding(0, ())
    report = DataReport((), nothing, {}, nothing, nothing, nothing, LeftOut(0, 0, 0, 0))
    return DataSplits(train=make_images(7), validation=make_images(7), test=test, report=report, sha256="")


def make_scores(count: int) -> np.ndarray:
    powers = np.exp(np.random.default_rng(1).normal(0, 1.5, (count, 7)))
    return powers / powers.sum(axis=1, keepdims=True)


HISTORY = [
    {
        "number": number,
        "train_loss": 2 / number,
        "train_accuracy": 0.1 * number,
        "validation_loss": 1.8 / number,
        "validation_accuracy": 0.12 * number,
        "seconds": 60.0,
    }
    for number in range(1, 6)
]


def read(path: Path) -> np.ndarray:
    picture = cv2.imread(str(path))
    assert picture is not None, f"{path} is no picture"
    return picture


def test_a_training_leaves_four_pictures(tmp_path: Path) -> None:
    splits = make_splits(make_images(60))
    paths = draw_figures(HISTORY, make_scores(60), splits, tmp_path / "new" / "folder")
    assert [path.name for path in paths] == NAMES
    assert sorted(path.name for path in paths[0].parent.iterdir()) == sorted(NAMES), "a part was left behind"
    for path in paths:
        picture = read(path)
        assert min(picture.shape[:2]) > 300
        # On white, with something on it.
        assert (picture[0] == 255).all()
        assert 0.02 < (picture < 250).any(axis=2).mean() < 0.9


def test_without_epochs_there_are_no_curves(tmp_path: Path) -> None:
    paths = draw_figures([], make_scores(20), make_splits(make_images(20)), tmp_path)
    assert [path.name for path in paths] == NAMES[1:]


def test_one_epoch_is_drawn_too(tmp_path: Path) -> None:
    assert read(draw_curves(HISTORY[:1], tmp_path / "curves.png")).size


def test_the_same_figures_are_the_same_file(tmp_path: Path) -> None:
    scores, labels = make_scores(50), make_images(50).labels
    first, second = (draw_reliability(scores, labels, tmp_path / f"{name}.png") for name in "ab")
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("count", [1, 7])
def test_few_answers_and_emotions_without_images_are_drawn(tmp_path: Path, count: int) -> None:
    images, scores = make_images(count), make_scores(count)
    draw_reliability(scores, images.labels, tmp_path / "reliability.png")
    draw_confusion(measure(scores, images.labels), tmp_path / "confusion.png")
    draw_mistakes(scores, images, tmp_path / "mistakes.png")
    assert all(read(path).size for path in tmp_path.iterdir())


def test_a_network_without_mistakes_gives_an_empty_sheet(tmp_path: Path) -> None:
    images = make_images(14)
    sheet = read(draw_mistakes(np.eye(7)[images.labels], images, tmp_path / "mistakes.png"))
    # Beyond the words "No mistakes" nothing is drawn.
    assert (sheet < 250).any(axis=2).mean() < 0.02


def test_the_sheet_shows_the_surest_mistakes_and_nothing_that_is_right(tmp_path: Path) -> None:
    """Images of one grey each: which greys are on the sheet says which images are."""
    images = make_images(200)
    greys = np.arange(200, dtype=np.uint8) + 20
    images.images_gray[:] = greys[:, np.newaxis, np.newaxis]
    answers = (images.labels + 1) % 7
    answers[::2] = images.labels[::2]  # The right half.
    stated = np.linspace(0.3, 0.9, 200)  # The later, the surer.
    scores = np.eye(7)[answers] * stated[:, np.newaxis] + (1 - stated[:, np.newaxis]) / 7
    sheet = read(draw_mistakes(scores, images, tmp_path / "mistakes.png"))
    counts = np.bincount(sheet[(sheet == sheet[..., :1]).all(axis=2)][:, 0], minlength=256)
    shown = np.flatnonzero(counts[greys] > 5000)
    assert shown.tolist() == sorted(range(199, 0, -2))[-32:]


def test_drawing_uses_no_state_that_threads_share() -> None:
    program = (
        "import sys, numpy as np; from pathlib import Path; from training.figures import draw_reliability\n"
        "import tempfile\n"
        "draw_reliability(np.eye(7), np.arange(7), Path(tempfile.mkdtemp()) / 'a.png')\n"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
