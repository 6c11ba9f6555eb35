"""training/formats.py"""

import csv
import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ferflow.emotions import EMOTIONS
from ferflow.errors import DataError
from training.formats import decode_gray, emotion_of, read_labelled_folder, read_pictures, split_of


def draw(path: Path, *, seed: int = 0) -> Path:
    """Write a blurred random picture that looks like no other seed's."""
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8)).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), cv2.resize(noise, (48, 48), interpolation=cv2.INTER_LINEAR))
    return path


def write_table(path: Path, columns: dict[str, list[str]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([list(columns), *zip(*columns.values(), strict=True)])
    return path


def bomb(side_px: int) -> bytes:
    """A valid PNG of a few kilobytes that decodes to a black square."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    one_bit_grey = struct.pack(">IIBBBBB", side_px, side_px, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((side_px // 8 + 1) * side_px), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", one_bit_grey) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def placed(data: Path) -> list[tuple[str, str, str | None]]:
    return [(picture.path, picture.label, picture.split) for picture in read_pictures(data)]


@pytest.mark.parametrize(
    ("word", "emotion"),
    [
        ("angry", "angry"),
        ("Anger", "angry"),
        (" DISGUSTED ", "disgust"),
        ("fearful", "fear"),
        ("happiness", "happy"),
        ("Neutral", "neutral"),
        ("sadness", "sad"),
        ("surprised", "surprise"),
        ("contempt", None),
        ("", None),
        ("3", None),
    ],
)
def test_the_words_of_other_data_sets_are_understood(word: str, emotion: str | None) -> None:
    assert emotion_of(word) == (None if emotion is None else EMOTIONS.index(emotion))


def test_the_names_of_fer2013s_parts_are_splits() -> None:
    words = ("Training", "PublicTest", "PrivateTest", "val", "TEST", "happy")
    assert [split_of(word) for word in words] == ["train", "validation", "test", "validation", "test", None]


def test_folders_say_label_and_split_in_any_spelling(tmp_path: Path) -> None:
    for path in ("Train/Happiness/a.jpg", "val/fear/b.PNG", "test/contempt/c.webp", "test/sad/d.bmp"):
        draw(tmp_path / path)
    assert sorted(placed(tmp_path)) == [
        ("Train/Happiness/a.jpg", "Happiness", "train"),
        ("test/contempt/c.webp", "contempt", "test"),
        ("test/sad/d.bmp", "sad", "test"),
        ("val/fear/b.PNG", "fear", "validation"),
    ]


def test_what_systems_and_copying_programs_leave_is_passed_over(tmp_path: Path) -> None:
    draw(tmp_path / "happy/a.jpg")
    for name in (".hidden.jpg", "~a.jpg", "._a.jpg"):
        draw(tmp_path / "happy" / name)
    for folder in ("__MACOSX", ".Trash-1000", "@eaDir"):
        draw(tmp_path / folder / "b.jpg")
    (tmp_path / "happy/b.jpg.part").write_bytes(b"half")
    (tmp_path / "happy/notes.txt").write_text("no picture by its name")
    (tmp_path / "happy/folder.jpg").mkdir()
    assert placed(tmp_path) == [("happy/a.jpg", "happy", None)]
    assert [picture.path for picture in read_labelled_folder(tmp_path)] == ["happy/a.jpg"]


IN_SPLITS = {
    "train/happy/a.png": None,
    "test/sad/a.png": None,
    "test/sad/b.TIFF": "other_format",
    "test/bored/b.gif": "other_format",
    "train/happy/more/a.png": "misplaced",
    "train/happy/more/and/more/a.heic": "misplaced",
    "train/a.png": "misplaced",
    "valdation/happy/a.png": "misplaced",
    "happy/a.png": "misplaced",
    "a.png": "misplaced",
}
FLAT = {
    "happy/a.png": None,
    "sad/b.tif": "other_format",
    "happy/monday/a.png": "misplaced",
    "train/a.png": None,
    "a.png": "misplaced",
}


def drop(folder: Path, names: Iterable[str]) -> Path:
    """Write pictures, whatever their names end with, among much else that nobody takes for one."""
    content = cv2.imencode(".png", np.eye(48, dtype=np.uint8))[1].tobytes()
    for name in [*names, "happy/faces.csv", "notes.txt", ".git/happy/a.png", "happy/.b.png", "happy/more/~c.png"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("layout", [IN_SPLITS, FLAT])
def test_pictures_in_places_or_formats_that_are_not_read_are_given_with_that_fault(
    tmp_path: Path, layout: dict[str, str | None]
) -> None:
    """Seen to fail: they were passed over without a word, in folders and in archives."""
    folder = drop(tmp_path / "faces", layout)
    pack_zip(tmp_path / "bare.zip", folder, "")
    pack_tar(tmp_path / "wrapped.tar.gz", folder, "fer2013")
    for data in (folder, tmp_path / "bare.zip", tmp_path / "wrapped.tar.gz"):
        assert {picture.path: picture.fault for picture in read_pictures(data)} == layout
    if layout is FLAT:
        assert {picture.path: picture.fault for picture in read_labelled_folder(folder)} == FLAT


def test_a_picture_beside_the_one_folder_of_an_archive_does_not_hide_what_is_in_it(tmp_path: Path) -> None:
    drop(tmp_path / "pack/fer2013", ["happy/a.png"])
    drop(tmp_path / "pack", ["cover.gif", "sad/b.gif"])
    pack_zip(tmp_path / "faces.zip", tmp_path / "pack", "")
    faults = {picture.path: picture.fault for picture in read_pictures(tmp_path / "faces.zip")}
    assert faults == {"happy/a.png": None, "cover.gif": "misplaced", "sad/b.gif": "other_format"}


def test_a_link_may_stand_for_an_emotions_folder_and_one_that_leads_back_ends(tmp_path: Path) -> None:
    draw(tmp_path / "elsewhere/a.png")
    draw(tmp_path / "faces/happy/a.png")
    (tmp_path / "faces/sad").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "faces/happy/more").mkdir()
    (tmp_path / "faces/happy/more/back").symlink_to(tmp_path / "faces")
    faults = {picture.path: picture.fault for picture in read_pictures(tmp_path / "faces")}
    assert faults == {"happy/a.png": None, "sad/a.png": None}


def pack_tar(archive: Path, folder: Path, top: str) -> None:
    with tarfile.open(archive, "w:gz") as file:
        file.add(folder, arcname=top or ".")


def pack_zip(archive: Path, folder: Path, top: str) -> None:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in folder.rglob("*"):
            file.write(path, f"{top}/{path.relative_to(folder)}" if top else path.relative_to(folder))


@pytest.mark.parametrize(("pack", "name"), [(pack_tar, "faces.tar.gz"), (pack_zip, "faces.zip")])
@pytest.mark.parametrize("top", ["", "fer2013"])
@pytest.mark.parametrize("layout", ["splits", "flat"])
def test_an_archive_reads_like_its_folder_also_with_a_folder_around_it(
    tmp_path: Path, pack, name: str, top: str, layout: str
) -> None:
    folder = tmp_path / "faces"
    for seed, place in enumerate(("train/happy", "train/sad", "test/fear")):
        draw(folder / (place if layout == "splits" else place.split("/")[1]) / "a.jpg", seed=seed)
    (folder / "README.txt").write_text("beside the folders")
    pack(tmp_path / name, folder, top)
    unpacked = {picture.path: picture for picture in read_pictures(folder)}
    packed = {picture.path: picture for picture in read_pictures(tmp_path / name)}
    assert packed.keys() == unpacked.keys()
    for path, picture in packed.items():
        assert (picture.label, picture.split) == (unpacked[path].label, unpacked[path].split)
        assert np.array_equal(picture.image_gray, unpacked[path].image_gray)
    assert len(packed) == 3


def test_an_archive_of_one_emotion_keeps_its_only_folder(tmp_path: Path) -> None:
    draw(tmp_path / "faces/happy/a.jpg")
    pack_tar(tmp_path / "faces.tgz", tmp_path / "faces", "")
    assert placed(tmp_path / "faces.tgz") == [("happy/a.jpg", "happy", None)]


@pytest.mark.fault("an archive of pictures with ../, an absolute path and a link")
def test_nothing_of_an_archive_is_written_to_the_disk(tmp_path: Path, record_property) -> None:
    """Seen to fail: where `_from_tar` unpacked them, `..` and the absolute path led outside; without `isfile` a link
    was a KeyError."""
    content = draw(tmp_path / "a.jpg").read_bytes()
    with tarfile.open(tmp_path / "evil.tar", "w") as file:
        for name in ("happy/a.jpg", "../escaped/happy.jpg", str(tmp_path / "absolute" / "happy.jpg")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("happy/link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(link)
    before = sorted(tmp_path.parent.rglob("*"))
    read = [(path, label, split) for path, label, split in placed(tmp_path / "evil.tar") if label]
    assert ("happy/a.jpg", "happy", None) in read
    assert "happy/link.jpg" not in {path for path, _, _ in read}
    after = sorted(tmp_path.parent.rglob("*"))
    assert after == before
    record_property("figures", f"{len(read)} of 4 members read, {len({*after} - {*before})} files written to the disk")


@pytest.mark.parametrize("name", ["cut off.tar.gz", "cut off.zip", "cut off.parquet"])
def test_a_damaged_file_is_refused_in_a_sentence(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "faces"
    for seed in range(5):
        draw(folder / "happy" / f"{seed}.png", seed=seed)
    pack_tar(tmp_path / "whole", folder, "")
    (tmp_path / name).write_bytes((tmp_path / "whole").read_bytes()[:5000])
    with pytest.raises(DataError, match="it cannot be read as a") as refusal:
        list(read_pictures(tmp_path / name))
    assert str(refusal.value).startswith(str(tmp_path / name))


@pytest.mark.parametrize(("pack", "name"), [(pack_tar, "faces.tar.gz"), (pack_zip, "faces.zip")])
def test_an_archive_damaged_anywhere_is_refused_and_not_read_in_part(tmp_path: Path, pack, name: str) -> None:
    for seed in range(5):
        draw(tmp_path / "faces/happy" / f"{seed}.png", seed=seed)
    pack(tmp_path / name, tmp_path / "faces", "")
    whole = (tmp_path / name).read_bytes()
    # From behind the folder's own entry, in which nothing can be wrong.
    for place in range(300, len(whole) * 9 // 10, len(whole) // 8):
        (tmp_path / name).write_bytes(whole[:place] + b"\xff" * 40 + whole[place + 40 :])
        with pytest.raises(DataError, match="it cannot be read as an archive"):
            list(read_pictures(tmp_path / name))


def test_fer2013s_own_numbers_are_not_the_order_of_the_emotions(tmp_path: Path) -> None:
    pixels = " ".join(str(value % 256) for value in range(48 * 48))
    table = write_table(
        tmp_path / "fer2013.csv",
        {
            "emotion": [str(number) for number in range(7)],
            "pixels": [pixels] * 7,
            "Usage": ["Training"] * 5 + ["PublicTest", "PrivateTest"],
        },
    )
    pictures = list(read_pictures(table))
    # As the competition's page numbers them.
    assert [picture.label for picture in pictures] == "angry disgust fear happy sad surprise neutral".split()
    assert [EMOTIONS[picture.emotion] for picture in pictures if picture.emotion is not None] == [
        picture.label for picture in pictures
    ]
    assert [picture.split for picture in pictures] == ["train"] * 5 + ["validation", "test"]
    assert pictures[0].path == "fer2013.csv:2"
    expected = (np.arange(48 * 48) % 256).reshape(48, 48)
    assert all(np.array_equal(picture.image_gray, expected) for picture in pictures)
    assert [picture.path for picture in read_pictures(tmp_path)] == [picture.path for picture in pictures]


def test_the_other_spelling_of_fer2013s_columns_and_one_without_usage_are_read(tmp_path: Path) -> None:
    write_table(tmp_path / "icml_face_data.csv", {"emotion": ["3"], " Usage": ["PrivateTest"], " pixels": ["7 7 7 7"]})
    (picture,) = read_pictures(tmp_path)
    assert (picture.label, picture.split) == ("happy", "test")
    (picture,) = read_pictures(write_table(tmp_path / "train.csv", {"emotion": ["3"], "pixels": ["7 7 7 7"]}))
    assert (picture.split, picture.image_gray.shape) == (None, (2, 2))


@pytest.mark.parametrize(
    "pixels", ["", "1 2 3", "1 2 x 4", "1 2 3 256", "1 2 3 -4", "1 2 3 4.5", "1 2 3 4 x", "9" * 40, "1,2,3,4"]
)
def test_a_line_whose_pixels_are_no_square_picture_counts_as_unreadable(tmp_path: Path, pixels: str) -> None:
    (picture,) = read_pictures(write_table(tmp_path / "a.csv", {"emotion": ["0"], "pixels": [pixels]}))
    assert picture.image_gray is None


def test_a_number_beyond_the_seven_is_an_unknown_label(tmp_path: Path) -> None:
    table = write_table(tmp_path / "a.csv", {"emotion": ["7", "-1", "²", "sad"], "pixels": ["1 2 3 4"] * 4})
    assert [picture.emotion for picture in read_pictures(table)] == [None, None, None, EMOTIONS.index("sad")]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_of_paths_is_read_from_its_own_folder_in_either_format(tmp_path: Path, kind: str) -> None:
    for seed, name in enumerate("abc"):
        draw(tmp_path / "faces" / f"{name}.png", seed=seed)
    columns = {
        "Path": ["faces/a.png", "faces/b.png", "faces/c.png", "faces/gone.png"],
        "label": ["Happy", "ANGER", "bored", "sad"],
        "usage": ["Training", "test", "validation", "train"],
    }
    table = write_table(tmp_path / "faces.csv", columns)
    if kind == "parquet":
        table = tmp_path / "faces.parquet"
        labels = pa.array(columns["label"]).dictionary_encode()
        pq.write_table(pa.table(columns).set_column(1, "label", labels), table)
    pictures = list(read_pictures(table))
    assert [picture.path for picture in pictures] == columns["Path"]
    assert [picture.split for picture in pictures] == ["train", "test", "validation", "train"]
    assert [picture.emotion for picture in pictures] == [
        EMOTIONS.index(name) if name else None for name in ("happy", "angry", None, "sad")
    ]
    assert [picture.image_gray is None for picture in pictures] == [False, False, True, True]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_what_a_table_names_and_nobody_can_read_is_told_from_a_file_that_holds_no_image(
    tmp_path: Path, kind: str
) -> None:
    """Seen to fail: the NUL was a ValueError, the link to itself a RuntimeError."""
    draw(tmp_path / "happy/a.png")
    (tmp_path / "happy/empty.png").write_bytes(b"")
    (tmp_path / "happy/loop.png").symlink_to("loop.png")
    (tmp_path / "happy/nowhere.png").symlink_to("gone.png")
    faults = {
        "happy/a.png": None,
        "happy/empty.png": "unreadable",
        "happy\\a.png": "missing",
        "images/happy/a.png": "missing",
        "happy/a.png/b.png": "missing",
        "happy/\0.png": "missing",
        "/\0.png": "missing",
        "happy/loop.png": "missing",
        "happy/nowhere.png": "missing",
        "happy": "missing",
        "x" * 5000: "missing",
    }
    columns = {"path": list(faults), "label": ["happy"] * len(faults)}
    table = tmp_path / f"faces.{kind}"
    if kind == "csv":
        write_table(table, columns)
    else:
        pq.write_table(pa.table(columns), table)
    assert {picture.path: picture.fault for picture in read_pictures(table)} == faults


def test_a_table_may_name_pictures_elsewhere_but_only_such_as_are_there(tmp_path: Path) -> None:
    folder = tmp_path / "tables"
    folder.mkdir()
    elsewhere = draw(tmp_path / "faces/a.png")
    paths = [str(elsewhere), "../faces/a.png"]
    table = write_table(folder / "a.csv", {"path": paths, "label": ["sad", "sad"]})
    assert all(picture.image_gray is not None for picture in read_pictures(table))
    for gone in (str(tmp_path / "faces/b.png"), "../faces/b.png"):
        table = write_table(folder / "a.csv", {"path": [*paths, gone], "label": ["sad"] * 3})
        with pytest.raises(DataError, match=r"line 4 names .*b\.png, which lies outside of the table's folder"):
            list(read_pictures(table))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lacks the column path and label"),
        ("path,emotion\na.png,sad\n", "lacks the column label"),
        ("path,label,split\na.png,sad,holdout\n", "line 2 has the split 'holdout'"),
        ("path,label,split\na.png,sad\n", "line 2 has the split ''"),
        ("path,label\n,sad\n", "line 2 names no file"),
        ("emotion,pixels,Usage\n0,1 2 3 4,Later\n", "line 2 has the usage 'Later'"),
        ("path,label\n" + 200_000 * "x" + ",sad\n", "cannot be read as a CSV table"),
        ("path,label\n\xe9.png,sad\n", "cannot be read as a CSV table"),
    ],
)
def test_a_table_with_a_mistake_is_refused_by_line(tmp_path: Path, text: str, message: str) -> None:
    table = tmp_path / "faces.csv"
    table.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=message) as refusal:
        list(read_pictures(table))
    assert str(refusal.value).startswith(str(table))


def test_a_table_as_spreadsheets_save_it_is_read(tmp_path: Path) -> None:
    draw(tmp_path / "Gesicht, müde.png")
    table = tmp_path / "faces.csv"
    table.write_bytes('path,label\r\n"Gesicht, müde.png",sad\r\n,\r\n\r\n'.encode("utf-8-sig"))
    assert [picture.image_gray is None for picture in read_pictures(table)] == [False]


def test_a_picture_that_claims_to_be_gigantic_is_not_decoded() -> None:
    assert decode_gray(bomb(2_000)) is not None
    large = bomb(10_104)
    assert len(large) < 30_000
    assert decode_gray(large) is None
    claims = bytearray(cv2.imencode(".png", np.zeros((8, 8), np.uint8))[1].tobytes())
    claims[16:24] = struct.pack(">II", 2**31 - 1, 2**31 - 1)
    assert decode_gray(bytes(claims)) is None


def test_a_cut_off_picture_is_none(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png", "a.webp", "a.bmp"):
        whole = draw(tmp_path / name).read_bytes()
        assert decode_gray(whole) is not None
        assert decode_gray(whole[: len(whole) // 2]) is None


def test_a_file_that_may_not_be_read_and_one_that_is_far_too_large_count_as_unreadable(tmp_path: Path) -> None:
    draw(tmp_path / "happy/a.png")
    with draw(tmp_path / "happy/huge.png").open("r+b") as file:
        # Empty blocks: it takes no room on the disk.
        file.truncate(200_000_001)
    (tmp_path / "happy/loop.png").symlink_to("loop.png")
    assert [picture.image_gray is None for picture in read_pictures(tmp_path)] == [False, True]
