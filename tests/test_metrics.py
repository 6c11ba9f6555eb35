"""training/metrics.py"""

import numpy as np
import pytest

from training.metrics import (
    Calibration,
    Significance,
    accuracy_interval,
    calibrate,
    expected_calibration_error,
    favour_rare_answers,
    fit_calibration,
    mcnemar,
    measure,
    reliability_bins,
)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits)
    return powers / powers.sum(axis=1, keepdims=True)


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


def test_every_answer_falls_into_one_bin_and_empty_bins_say_nothing() -> None:
    confidences = np.array([0.0, 0.2, 0.21, 0.5, 1.0])
    bins = reliability_bins(confidences, np.array([False, True, False, True, True]))
    assert [bin_.image_count for bin_ in bins if bin_.image_count] == [1, 2, 1, 1]
    assert (bins[3].low, bins[3].mean_confidence, bins[3].accuracy) == pytest.approx((0.2, 0.205, 0.5))
    assert (bins[1].mean_confidence, bins[1].accuracy) == (None, None)
    assert (bins[0].low, bins[-1].high) == (0, 1)
    assert [bin_.high for bin_ in bins[:-1]] == [bin_.low for bin_ in bins[1:]]


def rights(both: int, first: int, second: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    first_right = np.repeat([True, True, False, False], [both, first, second, neither])
    return first_right, np.repeat([True, False, True, False], [both, first, second, neither])


@pytest.mark.parametrize(
    ("first", "second", "p_value"),
    # By hand: 2 * (1 + 10) / 2 ** 10; all ten one way: 2 / 2 ** 10; as even as can be: 1.
    [(9, 1, 22 / 1024), (1, 9, 22 / 1024), (0, 10, 2 / 1024), (5, 5, 1.0), (6, 5, 1.0), (0, 0, 1.0), (0, 1, 1.0)],
)
def test_the_significance_agrees_with_a_count_by_hand(first: int, second: int, p_value: float) -> None:
    expected = Significance(first, second, pytest.approx(p_value))
    assert mcnemar(*rights(100, first, second, 30)) == expected
    assert mcnemar(*rights(0, first, second, 0)) == expected, "images on which both agree changed it"


def test_the_significance_of_thousands_of_images_is_a_number() -> None:
    assert 0 < mcnemar(*rights(0, 1000, 1200, 5000)).p_value < 1e-4
    assert mcnemar(*rights(0, 0, 3589, 0)).p_value == 0
    with pytest.raises(ValueError, match="1 answers of the first, 2 of the second"):
        mcnemar(np.ones(1, bool), np.ones(2, bool))


def test_the_interval_of_an_accuracy_agrees_with_the_literature() -> None:
    # Newcombe, Two-sided confidence intervals for the single proportion (1998), table I, method 3.
    for right, count, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)):
        assert accuracy_interval(right, count) == pytest.approx((low, high), abs=5e-5)
    assert accuracy_interval(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)
    assert accuracy_interval(20, 20)[1] == 1


def test_the_fitted_calibration_undoes_a_known_distortion() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (20_000, 7))
    labels = (softmax(logits).cumsum(axis=1) > rng.random((20_000, 1))).argmax(axis=1)
    biases = np.array([0.5, -0.5, 0.2, -0.2, 0.0, 0.3, -0.3])
    distorted = softmax(2 * (logits - biases))
    calibration = fit_calibration(distorted, labels)
    assert calibration.temperature == pytest.approx(2, abs=0.06)
    assert calibration.class_biases == pytest.approx(biases, abs=0.1)
    before, after = measure(distorted, labels), measure(calibrate(distorted, calibration), labels)
    assert after.calibration_error < 0.01 < before.calibration_error
    assert after.log_loss < before.log_loss


def test_calibration_leaves_well_calibrated_probabilities_alone() -> None:
    rng = np.random.default_rng(1)
    true = softmax(rng.normal(0, 2, (20_000, 7)))
    labels = (true.cumsum(axis=1) > rng.random((20_000, 1))).argmax(axis=1)
    calibration = fit_calibration(true, labels)
    assert calibration.temperature == pytest.approx(1, abs=0.03)
    assert calibration.class_biases == pytest.approx(np.zeros(7), abs=0.1)
    assert calibrate(true, Calibration(1.0, (0.0,) * 7)) == pytest.approx(true)


def test_calibration_stays_finite_on_a_few_images_told_apart_perfectly() -> None:
    calibration = fit_calibration(np.eye(7)[:3], np.arange(3))
    assert np.isfinite([calibration.temperature, *calibration.class_biases]).all()
    assert calibration.temperature > 0


def test_nothing_to_measure_is_refused() -> None:
    with pytest.raises(ValueError, match="0 rows"):
        measure(np.empty((0, 7)), np.empty(0, int))
    with pytest.raises(ValueError, match="2 rows of probabilities for 3 labels"):
        measure(np.ones((2, 7)), np.zeros(3, int))


def test_rare_answers_are_favoured_until_each_class_has_its_share() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [900, 100])
    logits = rng.normal(0, 1, (1000, 2)) + np.eye(2)[labels] * 1.5 + [1.5, 0]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    plain = fit_calibration(probabilities, labels)
    assert measure(calibrate(probabilities, plain), labels).recall[1] < 0.5
    favoured = favour_rare_answers(probabilities, labels, plain, least_recall=0.6)
    assert 0.6 <= measure(calibrate(probabilities, favoured), labels).recall[1] < 0.65
    unchanged = favour_rare_answers(probabilities, labels, plain, least_recall=0.0)
    assert np.allclose(unchanged.class_biases, plain.class_biases)
