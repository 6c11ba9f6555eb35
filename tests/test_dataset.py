"""training/dataset.py"""

import csv
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from ferflow.emotions import EMOTIONS
from ferflow.errors import DataError
from training.dataset import LABELS_FILE, load_splits, soft_targets


def draw(path: Path, *, seed: int, size_px: int = 48) -> Path:
    """Write a blurred random picture that looks like no other seed's."""
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8)).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), cv2.resize(noise, (size_px, size_px), interpolation=cv2.INTER_LINEAR))
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """FER2013's layout: of each emotion two images to fit to, one to choose on, one to report on."""
    folder = tmp_path / "fer"
    for index, emotion in enumerate(EMOTIONS):
        draw(folder / "train" / emotion / f"Training_{index}.jpg", seed=10 * index)
        draw(folder / "train" / emotion / f"Training_1{index}.jpg", seed=10 * index + 1)
        draw(folder / "test" / emotion / f"PublicTest_{index}.jpg", seed=10 * index + 2)
        draw(folder / "test" / emotion / f"PrivateTest_{index}.jpg", seed=10 * index + 3)
    return folder


def write_votes(table: Path, votes: dict[str, dict[str, str]]) -> None:
    names = "neutral happiness surprise sadness anger disgust fear contempt unknown not_a_face".split()
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["path", *(f"votes_{name}" for name in names)], restval="0")
        writer.writeheader()
        for path, counts in votes.items():
            writer.writerow({"path": path} | {f"votes_{name}": count for name, count in counts.items()})


def test_file_names_say_which_test_image_is_for_choosing_and_which_for_reporting(data: Path) -> None:
    splits = load_splits(data)
    assert [len(splits.train), len(splits.validation), len(splits.test)] == [14, 7, 7]
    assert all("PublicTest" in path for path in splits.validation.paths)
    assert all("PrivateTest" in path for path in splits.test.paths)
    assert splits.train.images_gray.shape == (14, 48, 48)
    assert splits.train.images_gray.dtype == np.uint8
    assert [EMOTIONS[label] for label in splits.test.labels] == [path.split("/")[1] for path in splits.test.paths]


def test_an_image_of_the_right_size_comes_through_pixel_for_pixel(data: Path) -> None:
    test = load_splits(data).test
    for path, image in zip(test.paths, test.images_gray, strict=True):
        assert np.array_equal(image, cv2.imread(str(data / path), cv2.IMREAD_GRAYSCALE))


def test_an_archive_reads_like_its_folder(data: Path, tmp_path: Path) -> None:
    archive = tmp_path / "fer.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(data, arcname=".")
    from_archive, from_folder = load_splits(archive), load_splits(data)
    assert from_archive.sha256 == from_folder.sha256
    assert from_archive.train.paths == from_folder.train.paths


def test_the_hash_changes_with_a_label(data: Path) -> None:
    before = load_splits(data).sha256
    assert load_splits(data).sha256 == before
    (data / "train/sad/Training_5.jpg").rename(data / "train/fear/Training_5.jpg")
    assert load_splits(data).sha256 != before


def test_a_training_image_that_is_also_held_out_is_left_out(data: Path) -> None:
    twin = data / "test/happy/PrivateTest_3.jpg"
    (data / "train/sad/Training_77.jpg").write_bytes(twin.read_bytes())
    splits = load_splits(data)
    assert splits.left_out_leaked == 1
    assert "train/sad/Training_77.jpg" not in splits.train.paths
    seen = [path for path, seen in zip(splits.test.paths, splits.test.seen_in_training, strict=True) if seen]
    assert seen == ["test/happy/PrivateTest_3.jpg"]


def test_a_brighter_and_recompressed_copy_counts_as_the_same_photo(data: Path) -> None:
    image = cv2.imread(str(data / "test/happy/PublicTest_3.jpg"), cv2.IMREAD_GRAYSCALE)
    assert image is not None
    brighter = (image * 0.7 + 60).astype(np.uint8)
    cv2.imwrite(str(data / "train/happy/Training_88.jpg"), brighter, [cv2.IMWRITE_JPEG_QUALITY, 60])
    assert load_splits(data).left_out_leaked == 1


def test_blank_training_images_are_left_out_and_two_of_them_are_no_leak(data: Path) -> None:
    for path in ("train/sad/Training_90.png", "test/sad/PrivateTest_91.png"):
        cv2.imwrite(str(data / path), np.full((48, 48), 128, np.uint8))
    splits = load_splits(data)
    assert (splits.left_out_blank, splits.left_out_leaked) == (1, 0)
    assert len(splits.test) == 8


def test_files_that_hold_no_image_are_counted_and_left_out(data: Path) -> None:
    (data / "train/sad/empty.jpg").write_bytes(b"")
    (data / "train/sad/text.png").write_text("not an image")
    (data / "train/sad/notes.txt").write_text("no image by name")
    splits = load_splits(data)
    assert splits.unreadable == 2
    assert len(splits.train) == 14


def test_larger_colour_images_are_cut_to_their_central_square(data: Path) -> None:
    wide = np.zeros((100, 300, 3), np.uint8)
    wide[:, 100:200] = cv2.imread(str(draw(data.parent / "big.png", seed=999, size_px=100)))
    cv2.imwrite(str(data / "train/sad/wide.png"), wide)
    train = load_splits(data).train
    crop = train.images_gray[train.paths.index("train/sad/wide.png")]
    expected = cv2.resize(wide[:, 100:200, 0], (48, 48), interpolation=cv2.INTER_AREA)
    assert np.abs(crop.astype(int) - expected).mean() < 4


def test_other_file_names_in_test_are_dealt_out_the_same_way_every_time(data: Path) -> None:
    for index in range(40):
        draw(data / "test/happy" / f"my own {index}.png", seed=1000 + index)
    first, second = load_splits(data), load_splits(data)
    assert first.validation.paths == second.validation.paths
    assert min(len(first.validation), len(first.test)) >= 7 + 10


def test_votes_become_soft_targets_beside_the_label(data: Path) -> None:
    votes = {"neutral": "5", "fear": "2", "surprise": "1", "contempt": "2"}
    write_votes(data / LABELS_FILE, {"train/fear/Training_2.jpg": votes})
    train = load_splits(data).train
    targets = soft_targets(train, votes_share=0.5, smoothing=0.0)
    voted = dict(zip(EMOTIONS, targets[train.paths.index("train/fear/Training_2.jpg")], strict=True))
    assert voted["fear"] == pytest.approx(0.5 + 0.5 * 2 / 8)
    assert voted["neutral"] == pytest.approx(0.5 * 5 / 8)
    unvoted = dict(zip(EMOTIONS, targets[train.paths.index("train/fear/Training_12.jpg")], strict=True))
    assert unvoted["fear"] == 1
    smooth = soft_targets(train, votes_share=0.5, smoothing=0.07)
    assert smooth.min() == pytest.approx(0.01)
    assert smooth.sum(axis=1) == pytest.approx(np.ones(len(train)))


def test_the_votes_are_found_beside_an_archive(data: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "fer.tar.gz", "w:gz") as file:
        file.add(data, arcname=".")
    write_votes(tmp_path / LABELS_FILE, {"train/sad/Training_5.jpg": {"sadness": "10"}})
    assert load_splits(tmp_path / "fer.tar.gz").train.votes.sum() == 1


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("rm -r train", "has no train folder"),
        ("mv train/sad train/sadness", "train/sadness is not named after an emotion"),
        ("rm train/fear/*", "train/ has no usable image of fear"),
        ("rm test/*/*Public*", "has 0 images to choose on"),
    ],
)
def test_data_that_cannot_be_trained_on_is_refused_in_one_sentence(data: Path, spoil: str, message: str) -> None:
    import subprocess

    subprocess.run(spoil, shell=True, cwd=data, check=True)
    with pytest.raises(DataError, match=message) as refusal:
        load_splits(data)
    assert str(data) in str(refusal.value)


def test_a_path_that_is_not_there_and_a_damaged_archive_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder or archive"):
        load_splits(tmp_path / "nowhere")
    damaged = tmp_path / "cut off.tar.gz"
    damaged.write_bytes(b"\x1f\x8b\x08\x00 cut off")
    with pytest.raises(DataError, match="cannot be read as an archive"):
        load_splits(damaged)
    other = tmp_path / "movie.mp4"
    other.write_bytes(b"")
    with pytest.raises(DataError, match="neither a folder nor"):
        load_splits(other)


def test_a_table_of_votes_without_its_columns_or_with_words_is_refused(data: Path) -> None:
    (data / LABELS_FILE).write_text("path,votes_fear\nx,1\n")
    with pytest.raises(DataError, match="lacks the columns votes_anger"):
        load_splits(data)
    write_votes(data / LABELS_FILE, {"train/sad/Training_5.jpg": {"sadness": "many"}})
    with pytest.raises(DataError, match="line 2 has a vote that is not a number"):
        load_splits(data)
    with pytest.raises(DataError, match="no such table of votes"):
        load_splits(data, labels_csv=data / "missing.csv")
