"""training/augment.py"""

import dataclasses

import cv2
import numpy as np
import pytest

from training.augment import Augmentation, augment, augment_batch, mix_batch

NONE = Augmentation(
    shift_share=0.0, zoom_share=0.0, roll_degrees=0.0, mirror=0.0, light=0.0, erase=0.0, degrade=0.0, mix=0.0
)
ALL = Augmentation(
    shift_share=0.06, zoom_share=0.1, roll_degrees=10.0, mirror=0.5, light=0.3, erase=1.0, degrade=1.0, mix=0.0
)


@pytest.fixture
def face() -> np.ndarray:
    noise = np.random.default_rng(5).integers(60, 200, (6, 6)).astype(np.uint8)
    return cv2.resize(noise, (48, 48), interpolation=cv2.INTER_CUBIC)


def vary(face: np.ndarray, how: Augmentation, rng: np.random.Generator) -> np.ndarray:
    return augment(face, how, rng, size_px=48, other_gray=np.zeros_like(face))


def test_no_augmentation_leaves_every_pixel(face: np.ndarray) -> None:
    assert np.array_equal(vary(face, NONE, np.random.default_rng(0)), face)


def test_mirror_alone_swaps_left_and_right(face: np.ndarray) -> None:
    mirrored = vary(face, dataclasses.replace(NONE, mirror=1.0), np.random.default_rng(0))
    assert np.abs(mirrored.astype(int) - face[:, ::-1]).max() <= 1


def test_the_same_state_of_chance_gives_the_same_images(face: np.ndarray) -> None:
    faces = np.stack([face] * 20)
    first, second = (augment_batch(faces, ALL, np.random.default_rng(3), size_px=48) for _ in range(2))
    assert np.array_equal(first, second)
    assert len({image.tobytes() for image in first}) == 20


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Augmentation) if field.name != "mix"])
def test_each_strength_alone_changes_the_image_but_keeps_the_face(field: str, face: np.ndarray) -> None:
    how = dataclasses.replace(NONE, **{field: getattr(ALL, field) or 1.0})
    rng = np.random.default_rng(1)
    images = [vary(face, how, rng) for _ in range(30)]
    assert any(not np.array_equal(image, face) for image in images)
    middle = slice(12, 36)
    alike = [np.corrcoef(image[middle, middle].ravel(), face[middle, middle].ravel())[0, 1] for image in images]
    # The mirror image of a random pattern is another pattern; every other change leaves it recognisable.
    assert field == "mirror" or np.median(alike) > 0.6


def test_surroundings_are_a_flat_grey_or_those_of_another_face(face: np.ndarray) -> None:
    faces = np.stack([face] * 40 + [np.full_like(face, 7)] * 40)
    images = augment_batch(faces, dataclasses.replace(NONE, surroundings=1.0), np.random.default_rng(4), size_px=48)
    of_first, of_second = images[:40], images[40:]
    assert np.array_equal(of_first[:, 20:28, 20:28], faces[:40, 20:28, 20:28]), "what is in the middle stays"
    assert (of_second[:, 20:28, 20:28] == 7).all()
    corners = of_first[:, :3, :3]
    of_same, of_other = (corners == face[:3, :3]).all((1, 2)), (corners == 7).all((1, 2))
    is_flat = (np.ptp(corners, axis=(1, 2)) == 0) & ~of_other
    assert (of_same | of_other | is_flat).all()
    assert of_same.sum() >= 3
    assert of_other.sum() >= 3
    assert 10 <= is_flat.sum() <= 30
    assert len(np.unique(corners[is_flat])) > 5, "greys of all kinds"


def test_smaller_crops_for_the_first_epochs_are_uint8_of_that_size(face: np.ndarray) -> None:
    small = augment_batch(np.stack([face, face]), ALL, np.random.default_rng(0), size_px=32)
    assert small.shape == (2, 32, 32)
    assert small.dtype == np.uint8


def test_mixed_faces_and_their_targets_are_blended_by_the_same_share() -> None:
    rng = np.random.default_rng(2)
    # Each face is flat, of a grey of its own, so that what was blended can be read off it.
    greys = np.array([0, 200], np.uint8).repeat(50)
    targets = np.eye(7, dtype=np.float32)[[0, 1]].repeat(50, axis=0)
    faces, mixed = mix_batch(np.broadcast_to(greys[:, None, None], (100, 8, 8)), targets, 0.2, rng)
    assert (faces.dtype, faces.shape, mixed.dtype, mixed.shape) == (np.uint8, (100, 8, 8), np.float32, (100, 7))
    assert np.allclose(faces[:, 0, 0] / 200, mixed[:, 1], atol=0.003)
    assert np.allclose(mixed.sum(axis=1), 1)
    assert np.array_equal(mixed.argmax(axis=1), targets.argmax(axis=1)), "a face is never the lesser part"
    assert 5 < (mixed.max(axis=1) < 0.99).sum() < 60
