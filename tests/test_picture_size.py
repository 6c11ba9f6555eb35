"""training/picture_size.py"""

import struct

import cv2
import numpy as np
import pytest

from training.picture_size import claimed_size_wh

ENCODINGS = {
    "baseline jpeg": (".jpg", []),
    "progressive jpeg": (".jpg", [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]),
    "png": (".png", []),
    "lossy webp": (".webp", [cv2.IMWRITE_WEBP_QUALITY, 80]),
    "lossless webp": (".webp", [cv2.IMWRITE_WEBP_QUALITY, 101]),
    "bmp": (".bmp", []),
}


def encode(name: str, *, width: int = 61, height: int = 37) -> bytes:
    ending, options = ENCODINGS[name]
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    return cv2.imencode(ending, image, options)[1].tobytes()


@pytest.mark.parametrize("name", ENCODINGS)
def test_the_header_says_what_the_decoder_then_finds(name: str) -> None:
    assert claimed_size_wh(encode(name)) == (61, 37)
    assert claimed_size_wh(encode(name, width=1, height=300)) == (1, 300)


@pytest.mark.parametrize("name", ENCODINGS)
def test_a_file_that_ends_within_its_header_has_no_size_and_raises_nothing(name: str) -> None:
    whole = encode(name)
    sizes = [claimed_size_wh(whole[:length]) for length in range(min(len(whole), 1000))]
    assert sizes[0] is None
    assert set(sizes) <= {None, (61, 37)}


def test_an_animated_webp_and_one_with_alpha_say_the_size_of_their_canvas() -> None:
    with_alpha = np.random.default_rng(0).integers(0, 256, (37, 61, 4)).astype(np.uint8)
    assert claimed_size_wh(cv2.imencode(".webp", with_alpha, [cv2.IMWRITE_WEBP_QUALITY, 80])[1].tobytes()) == (61, 37)
    canvas = b"\x10\x00\x00\x00" + (4999).to_bytes(3, "little") + (3999).to_bytes(3, "little")
    extended = b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<I", 10) + canvas
    assert claimed_size_wh(extended) == (5000, 4000)


def test_bitmaps_of_other_ages_and_from_top_to_bottom_are_read() -> None:
    assert claimed_size_wh(b"BM" + bytes(12) + struct.pack("<Iii", 40, 61, -37)) == (61, 37)
    assert claimed_size_wh(b"BM" + bytes(12) + struct.pack("<IHH", 12, 61, 37)) == (61, 37)


def test_a_jpeg_is_read_past_a_thumbnail_of_another_size() -> None:
    whole, thumbnail = encode("baseline jpeg"), encode("baseline jpeg", width=8, height=8)
    comment = b"\xff\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    assert claimed_size_wh(whole[:2] + comment + whole[2:]) == (61, 37)


@pytest.mark.parametrize("content", [b"", b"text", b"\xff\xd8\xff\xda\x00\x02", b"\xff\xd8\x00\x00\x00\x00", b"GIF89a"])
def test_what_is_none_of_the_four_formats_has_no_size(content: bytes) -> None:
    assert claimed_size_wh(content) is None
