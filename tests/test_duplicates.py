"""training/duplicates.py"""

import cv2
import numpy as np

from training.duplicates import digest_of, identical, is_blank, same_photo


def pictures(count: int, *, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (count, 8, 8)).astype(np.uint8)
    return np.array([cv2.resize(image, (48, 48)) for image in noise])


def test_one_grey_value_more_makes_another_digest() -> None:
    (image,) = pictures(1)
    other = image.copy()
    other[0, 0] ^= 1
    assert digest_of(image) == digest_of(image.copy()) != digest_of(other)


def test_rows_that_share_their_pixels_are_grouped() -> None:
    assert identical(["a", "b", "a", "c", "b", "a"]) == [[0, 2, 5], [1, 4]]
    assert identical([]) == []


def test_a_photo_is_the_same_when_darker_compressed_or_of_less_contrast_but_not_when_it_is_another() -> None:
    first = pictures(5)
    darker = (first[3] * 0.5).astype(np.uint8)
    compressed = cv2.imdecode(cv2.imencode(".jpg", first[1], [cv2.IMWRITE_JPEG_QUALITY, 30])[1], cv2.IMREAD_GRAYSCALE)
    second = np.stack([*pictures(3, seed=1), darker, compressed])
    assert sorted(map(tuple, same_photo(first, second).tolist())) == [(1, 4), (3, 3)]


def test_pairs_are_found_across_slices_and_every_one_of_them() -> None:
    many = np.concatenate([pictures(1), pictures(2100, seed=1), pictures(1)])
    pairs = sorted(map(tuple, same_photo(many, np.repeat(pictures(1), 2, axis=0)).tolist()))
    assert pairs == [(0, 0), (0, 1), (2101, 0), (2101, 1)]


def test_nothing_is_like_a_blank_picture_and_no_pictures_have_no_pairs() -> None:
    blank = np.full((2, 48, 48), 128, np.uint8)
    assert is_blank(np.concatenate([blank, pictures(1)])).tolist() == [True, True, False]
    nothing = np.empty((0, 48, 48), np.uint8)
    faint = 128 + pictures(2) // 64
    assert is_blank(faint).all()
    for first, second in ((blank, blank), (faint, faint), (nothing, blank), (blank, nothing), (nothing, nothing)):
        assert same_photo(first, second).shape == (0, 2)
    assert is_blank(nothing).shape == (0,)
