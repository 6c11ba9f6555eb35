"""training/metrics.py"""

import numpy as np
import pytest

from training.metrics import apply_temperature, expected_calibration_error, fit_temperature, measure


def test_perfect_answers_measure_perfect() -> None:
    metrics = measure(np.eye(7), np.arange(7))
    assert metrics.accuracy == metrics.macro_f1 == 1
    assert metrics.recall == (1,) * 7
    assert metrics.calibration_error == 0
    assert metrics.log_loss == 0


def test_recall_f1_and_confusion_agree_with_a_count_by_hand() -> None:
    # Two of class 0, one answered 1; three of class 1, all answered 1; none of class 2.
    answers = np.array([0, 1, 1, 1, 1])
    metrics = measure(np.eye(3)[answers], np.array([0, 0, 1, 1, 1]))
    assert metrics.accuracy == pytest.approx(4 / 5)
    assert metrics.recall == (0.5, 1.0, None)
    assert metrics.confusion == ((1, 1, 0), (0, 3, 0), (0, 0, 0))
    # F1: 2/3 (precision 1, recall 1/2), 6/7 (precision 3/4, recall 1), 0.
    assert metrics.macro_f1 == pytest.approx((2 / 3 + 6 / 7 + 0) / 3)


def test_calibration_error_is_the_gap_between_stated_and_seen() -> None:
    right = np.array([True] * 6 + [False] * 4)
    assert expected_calibration_error(np.full(10, 0.9), right) == pytest.approx(0.3)
    assert expected_calibration_error(np.full(10, 0.6), right) == pytest.approx(0.0)


def test_a_certainty_of_one_falls_into_the_last_bin() -> None:
    assert expected_calibration_error(np.ones(4), np.ones(4, bool)) == 0


def test_the_fitted_temperature_undoes_a_known_one() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (20_000, 7))
    true = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (true.cumsum(axis=1) > rng.random((20_000, 1))).argmax(axis=1)
    overconfident = true**2 / (true**2).sum(axis=1, keepdims=True)
    assert fit_temperature(overconfident, labels) == pytest.approx(2, abs=0.06)
    assert fit_temperature(true, labels) == pytest.approx(1, abs=0.03)


def test_nothing_to_measure_is_refused() -> None:
    with pytest.raises(ValueError, match="0 rows"):
        measure(np.empty((0, 7)), np.empty(0, int))
    with pytest.raises(ValueError, match="2 rows of probabilities for 3 labels"):
        measure(np.ones((2, 7)), np.zeros(3, int))


def test_a_temperature_changes_how_sure_an_answer_is_but_not_the_answer() -> None:
    probabilities = np.array([[0.7, 0.2, 0.1], [1.0, 0.0, 0.0]])
    cooler, same = apply_temperature(probabilities, 0.5), apply_temperature(probabilities, 1.0)
    assert cooler[0] == pytest.approx(np.array([0.49, 0.04, 0.01]) / 0.54)
    assert same == pytest.approx(probabilities)
