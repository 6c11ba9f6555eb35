"""The colours of the page, the annotated video and the timeline: told apart by all, and seen on their grounds."""

from itertools import combinations

import numpy as np
import pytest
from skimage.color import deltaE_ciede2000, rgb2lab

from ferflow.emotions import EMOTIONS
from ferflow.overlay import EMOTION_COLORS_RGB
from viewer.theme import ALARM, EDGE, EMOTION_COLORS, INK, INK_COLORS, LINK, MUTED, PALE

# Machado, Oliveira and Fernandes, A Physiologically-based Model for Simulation of Color Vision Deficiency (2009),
# table 1, severity 1.0; for linear RGB.
SEEN_BY = {
    "everybody else": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
GROUNDS = ("#ffffff", "#f3f5f8", PALE)


def linear(rgb):
    rgb = np.asarray(rgb) / 255
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def contrast(one, other):
    """As WCAG 2.1 defines it; colours as CSS writes them."""
    darker, lighter = sorted(
        np.dot([0.2126, 0.7152, 0.0722], linear([int(color[at : at + 2], 16) for at in (1, 3, 5)]))
        for color in (one, other)
    )
    return (lighter + 0.05) / (darker + 0.05)


def smallest_difference(matrix):
    """CIEDE2000 of the two emotions that look most alike."""
    seen = np.clip(linear(EMOTION_COLORS_RGB) @ np.transpose(matrix), 0, 1)
    lab = rgb2lab(np.where(seen <= 0.0031308, seen * 12.92, 1.055 * seen ** (1 / 2.4) - 0.055))
    return min(float(deltaE_ciede2000(lab[one], lab[other])) for one, other in combinations(range(len(EMOTIONS)), 2))


@pytest.mark.parametrize("eyes", SEEN_BY)
def test_any_two_emotions_are_told_apart(eyes):
    assert smallest_difference(SEEN_BY[eyes]) >= 16


def test_two_colors_that_red_green_blind_people_confuse_are_found(monkeypatch):
    confused = ((204, 0, 0), (90, 75, 0), *EMOTION_COLORS_RGB[2:])
    monkeypatch.setattr("test_colors.EMOTION_COLORS_RGB", confused)
    assert smallest_difference(SEEN_BY["everybody else"]) >= 16
    assert smallest_difference(SEEN_BY["protanopia"]) < 16


@pytest.mark.parametrize("ground", GROUNDS)
def test_text_and_the_outline_of_marks_stand_out_from_every_ground(ground):
    assert min(contrast(text, ground) for text in (INK, MUTED, LINK, ALARM)) >= 4.5
    assert contrast(EDGE, ground) >= 3


def test_a_name_can_be_read_on_the_color_of_its_emotion():
    assert min(contrast(INK_COLORS[emotion], EMOTION_COLORS[emotion]) for emotion in EMOTIONS) >= 4.5
