"""training/evaluation.py, benchmarks/evaluate.py and what stands beside our model there."""

import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from lacking import lacking

from ferflow.emotions import EMOTIONS
from ferflow.errors import DataError, ModelError
from ferflow.faces import Framing
from models.store import EVALUATION_FILE
from training.dataset import DataSplits, LabelledImages, load_splits
from training.evaluation import (
    Candidate,
    ClipResult,
    Evaluation,
    Group,
    GroupResult,
    Scores,
    by_majority,
    by_top_vote,
    compare_metrics,
    evaluate,
    find_differences,
    find_groups,
    has_tie,
    list_goals,
    measure_group,
    measure_scores,
    read_crowd,
    read_evaluation,
    write_evaluation,
)
from training.metrics import ReliabilityBin, Significance

ROOT = Path(__file__).parents[1]

# Keras 3.15 hands numpy 2.4 tensors whose __array__ takes no copy keyword.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

SURE = np.eye(7)


def write_faces(folder: Path) -> Path:
    """FER2013's layout with seven patterns, one an emotion."""
    rng = np.random.default_rng(0)
    for emotion in EMOTIONS:
        pattern = cv2.resize(rng.integers(0, 256, (5, 6)).astype(np.uint8), (48, 48)).astype(float)
        for name, copies in (("train/{}/Training", 6), ("test/{}/PublicTest", 3), ("test/{}/PrivateTest", 4)):
            for number in range(copies):
                path = folder / f"{name.format(emotion)}_{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                grain = rng.normal(0, 40, pattern.shape)
                cv2.imwrite(str(path), np.clip(pattern + grain, 0, 255).astype(np.uint8))
    return folder


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_faces(tmp_path_factory.mktemp("faces"))


@pytest.fixture(scope="module")
def splits(faces: Path) -> DataSplits:
    return load_splits(faces)


def crowd_of(*rows: dict[str, int]) -> np.ndarray:
    answers = (*EMOTIONS, "contempt", "unknown", "not a face")
    return np.array([[votes.get(answer, 0) for answer in answers] for votes in rows])


def test_the_top_vote_counts_where_it_is_one_of_the_seven_and_alone() -> None:
    crowd = crowd_of(
        {"happy": 4, "neutral": 3, "unknown": 3},  # No majority, but happy leads.
        {"contempt": 6, "angry": 4},
        {"sad": 5, "fear": 5},
        {"sad": 4, "not a face": 4, "fear": 2},
        {},
        {"surprise": 10},
    )
    said = by_top_vote(crowd)
    assert said.rows.tolist() == [0, 5]
    assert [EMOTIONS[label] for label in said.labels] == ["happy", "surprise"]
    assert has_tie(crowd).tolist() == [False, False, True, True, False, False]


def test_the_majority_is_counted_without_single_votes() -> None:
    crowd = crowd_of(
        {"happy": 5, "neutral": 4, "unknown": 1},  # 5 of the 9 left.
        {"happy": 4, "neutral": 4, "sad": 2},
        {"happy": 5, "neutral": 3, "sad": 2},  # 5 of 10 is not more than half.
        {"contempt": 9, "angry": 1},
        {"angry": 1, "disgust": 1},
        {},
    )
    said = by_majority(crowd)
    assert said.rows.tolist() == [0]
    assert EMOTIONS[said.labels[0]] == "happy"


def test_votes_are_read_in_the_order_of_the_emotions(tmp_path: Path) -> None:
    table = tmp_path / "votes.csv"
    columns = "votes_neutral,votes_happiness,votes_surprise,votes_sadness,votes_anger,votes_disgust,votes_fear"
    columns += ",votes_contempt,votes_unknown,votes_not_a_face"
    table.write_text(f"path,{columns}\na.jpg,1,2,3,4,5,6,7,8,9,10\nb.jpg,,,,,,,,,,\n")
    crowd = read_crowd(table, ["b.jpg", "a.jpg", "not in the table.jpg"])
    assert crowd.tolist() == [[0] * 10, [5, 6, 7, 2, 1, 4, 3, 8, 9, 10], [0] * 10]


@pytest.mark.parametrize("text", ["path,votes_anger\na.jpg,3\n", "path\na.jpg\n", "no table\nat all\n"])
def test_a_table_that_lacks_votes_is_refused_by_name(tmp_path: Path, text: str) -> None:
    table = tmp_path / "votes.csv"
    table.write_text(text)
    with pytest.raises(DataError, match=re.escape(str(table))):
        read_crowd(table, ["a.jpg"])
    with pytest.raises(DataError, match=r"nowhere\.csv: this table of votes cannot be read"):
        read_crowd(tmp_path / "nowhere.csv", ["a.jpg"])


def test_each_set_is_measured_on_its_own_images(splits: DataSplits) -> None:
    test = splits.test
    seen = np.zeros(len(test), bool)
    seen[: len(test) // 2] = True
    splits = dataclasses.replace(splits, test=dataclasses.replace(test, seen_in_training=seen))
    # Right on what is not in training, wrong elsewhere; the mirror images are all right, and surer.
    answers = np.where(seen, (test.labels + 1) % 7, test.labels)
    mirrored = SURE[test.labels]
    scores = Scores(
        validation=SURE[splits.validation.labels], test=SURE[answers] * 0.4 + 0.6 / 7, test_mirrored=mirrored
    )
    crowd = crowd_of(*({"happy": 10} for _ in test.labels))
    crowd[-3:] = crowd_of({"unknown": 10})

    measured = measure_scores(scores, splits, crowd)
    assert set(measured) == {"validation", "test", "test_mirrored", "test_unseen", "ferplus", "ferplus_majority"}
    assert measured["validation"]["accuracy"] == 1
    assert measured["test"]["accuracy"] == 0.5
    assert measured["test_mirrored"]["accuracy"] == 1
    assert (measured["test_unseen"]["accuracy"], measured["test_unseen"]["image_count"]) == (1, len(test) // 2)
    assert measured["ferplus"]["image_count"] == len(test) - 3
    assert measured["ferplus"]["accuracy"] == pytest.approx((answers[:-3] == EMOTIONS.index("happy")).mean())
    assert json.loads(json.dumps(measured)) is not None
    assert "ferplus" not in measure_scores(scores, splits)


def test_a_classifier_sees_the_mirror_images_too(splits: DataSplits) -> None:
    asked: list[np.ndarray] = []

    def classify(crops_gray: np.ndarray) -> np.ndarray:
        asked.append(crops_gray)
        return np.full((len(crops_gray), 7), 1 / 7)

    evaluate(classify, splits)
    assert [len(crops) for crops in asked] == [21, 28, 28]
    assert np.array_equal(asked[2], asked[1][:, :, ::-1])
    assert asked[2].flags.c_contiguous


def test_the_thirds_share_the_images_out_by_what_their_name_says() -> None:
    dark, bright = np.full((48, 48), 60), np.full((48, 48), 200)
    stripes = np.tile([0, 40], (48, 24))
    images = np.stack([dark, bright, dark + stripes, bright + stripes, dark + stripes // 2, bright + stripes // 4])
    test = LabelledImages(
        paths=tuple("abcdef"),
        images_gray=images.astype(np.uint8),
        labels=np.arange(6),
        votes=np.zeros((6, 7)),
        seen_in_training=np.zeros(6, bool),
        digests=tuple("abcdef"),
    )
    groups = {(group.by, group.name): np.flatnonzero(group.rows).tolist() for group in find_groups(test)}
    assert groups["light", "darkest third"] == [0, 4]
    assert groups["light", "brightest third"] == [3, 5]
    assert groups["contrast", "strongest third"] == [2, 3]
    assert groups["contrast", "palest third"] == [0, 1]
    for by in ("light", "contrast"):
        members = [row for (measure, _), rows in groups.items() if measure == by for row in rows]
        assert sorted(members) == list(range(6))


def test_heads_and_crowds_are_grouped_where_they_were_measured(splits: DataSplits) -> None:
    test = splits.test
    rolls = np.full(len(test), 2.0)
    rolls[:4] = [-20, 10, np.nan, 5]
    crowd = crowd_of(*({"happy": 10} for _ in test.labels))
    crowd[:3] = crowd_of({"happy": 5, "sad": 5}, {"happy": 6, "sad": 4}, {})
    found = find_groups(test, crowd=crowd, rolls_degrees=rolls)
    counts = {group.name: int(group.rows.sum()) for group in found}
    assert counts["more than 15°"] == counts["5° to 15°"] == counts["no face found"] == 1
    assert counts["within 5°"] == len(test) - 3
    assert (counts["up to half say the same"], counts["more than half"]) == (1, 1)
    assert counts["nine of ten or all"] == len(test) - 3, "the image on which nobody voted counts for no agreement"
    assert {group.by for group in find_groups(test)} == {"light", "contrast", "sharpness"}


def test_a_group_is_compared_with_what_its_emotions_alone_would_give() -> None:
    labels = np.array([0, 0, 0, 0, 3, 3, 3, 3])
    answers = np.array([0, 1, 1, 1, 3, 3, 3, 1])
    everybody = measure_group(Group("all", "all", np.ones(8, bool)), SURE[answers], labels)
    assert everybody.accuracy == everybody.expected == 0.5
    assert everybody.low < 0.5 < everybody.high
    # The first of each emotion: right both, though recall is 1 in 4 and 3 in 4.
    some = measure_group(Group("few", "few", np.isin(np.arange(8), (0, 4))), SURE[answers], labels)
    assert (some.image_count, some.accuracy, some.expected) == (2, 1, 0.5)


@pytest.fixture
def evaluation(splits: DataSplits) -> Evaluation:
    return make_evaluation(splits)


def make_evaluation(splits: DataSplits) -> Evaluation:
    answers = SURE[splits.test.labels] * 0.7 + 0.3 / 7
    scores = Scores(SURE[splits.validation.labels], answers, answers)
    metrics = measure_scores(scores, splits, crowd_of(*({EMOTIONS[label]: 9} for label in splits.test.labels)))
    clips = tuple(ClipResult(f"{emotion}.mp4", emotion, "happy", 0.5) for emotion in EMOTIONS)
    return Evaluation(
        version="tiny-12345678",
        data_sha256=splits.sha256,
        model_mb=1.0,
        machine="a processor",
        served=Candidate("tiny, as it is served", metrics, 1.5, clips),
        float32=Candidate("tiny, Keras in float32", metrics, 3.5, ()),
        rival=Candidate("another network", metrics, 0.5, clips),
        served_against_rival=Significance(3, 1, 0.625),
        crowd_ties=2,
        groups=(GroupResult("light", "darkest third", 100, 0.5, 0.4, 0.6, 0.55),),
        reliability=(ReliabilityBin(0.7, 0.8, 0, None, None), ReliabilityBin(0.8, 0.9, 20, 0.85, 0.8)),
    )


def test_what_was_evaluated_is_read_back(evaluation: Evaluation, tmp_path: Path) -> None:
    assert read_evaluation(tmp_path) is None
    write_evaluation(tmp_path, evaluation)
    assert [path.name for path in tmp_path.iterdir()] == [EVALUATION_FILE]
    assert find_differences(evaluation, read_evaluation(tmp_path)) == []
    read = json.loads(json.dumps(dataclasses.asdict(read_evaluation(tmp_path))))
    assert read == json.loads(json.dumps(dataclasses.asdict(evaluation)))


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"served": 1}', "[" * 100_000])
def test_a_damaged_evaluation_is_refused_with_the_remedy(tmp_path: Path, text: str) -> None:
    (tmp_path / EVALUATION_FILE).write_text(text)
    with pytest.raises(ModelError, match=r"is damaged .* run `make evaluate` again"):
        read_evaluation(tmp_path)


def change(evaluation: Evaluation, split: str, **figures: object) -> Evaluation:
    metrics = evaluation.served.metrics | {split: {**evaluation.served.metrics[split], **figures}}
    return dataclasses.replace(evaluation, served=dataclasses.replace(evaluation.served, metrics=metrics))


def enlarge(evaluation: Evaluation) -> Evaluation:
    """As if there were 28,000 test images, or two of the few would be more than any tolerance in shares."""
    confusion = [[count * 1000 for count in row] for row in evaluation.served.metrics["test"]["confusion"]]
    return change(evaluation, "test", image_count=28_000, confusion=confusion)


@pytest.mark.parametrize(
    ("figures", "named"),
    [
        ({"accuracy": 0.996}, "served, test, accuracy: stored 1.0000, now 0.9960"),
        ({"calibration_error": 0.5}, "served, test, calibration_error"),
        ({"macro_f1": 0.99}, "served, test, macro_f1"),
        ({"log_loss": 9.0}, "served, test, log_loss"),
        ({"image_count": 27}, "served, test: stored 28000 images, now 27"),
        ({"recall": dict.fromkeys(EMOTIONS, 0.99)}, "served, test, recall of angry: stored 1.0000, now 0.9900"),
        ({"confusion": [[999] * 7] * 7}, "served, test, confusion: a cell moved by 3001 images"),
    ],
)
def test_a_figure_that_is_not_reproduced_is_named(
    evaluation: Evaluation, figures: dict[str, object], named: str
) -> None:
    stored = enlarge(evaluation)
    assert find_differences(stored, stored) == []
    assert any(line.startswith(named) for line in find_differences(stored, change(stored, "test", **figures)))


def test_what_another_processor_rounds_differently_is_no_difference(evaluation: Evaluation) -> None:
    stored = enlarge(evaluation)
    assert find_differences(stored, change(stored, "test", accuracy=0.9975, log_loss=0.305)) == []
    # Two of the few images: the recall of four images may move by two of them.
    few = change(evaluation, "test", recall=dict.fromkeys(EMOTIONS, 0.5))
    assert find_differences(evaluation, few) == []
    slower = dataclasses.replace(evaluation, served=dataclasses.replace(evaluation.served, cpu_ms=99.0))
    assert find_differences(evaluation, dataclasses.replace(slower, machine="another")) == []


def test_another_model_other_clips_and_other_groups_are_differences(evaluation: Evaluation) -> None:
    clips = evaluation.served.clips
    turned = (dataclasses.replace(clips[0], answer=clips[0].intended), *clips[1:])
    now = {
        "version": dataclasses.replace(evaluation, version="tiny-87654321"),
        "data_sha256": dataclasses.replace(evaluation, data_sha256="other"),
        "served, clips": dataclasses.replace(evaluation, served=dataclasses.replace(evaluation.served, clips=turned)),
        "rival, clips": dataclasses.replace(evaluation, rival=dataclasses.replace(evaluation.rival, clips=clips[1:])),
        "groups": dataclasses.replace(evaluation, groups=()),
        "crowd_ties": dataclasses.replace(evaluation, crowd_ties=3),
        "model_mb": dataclasses.replace(evaluation, model_mb=1.1),
        "served_against_rival, second_only: stored 1, now 4": dataclasses.replace(
            evaluation, served_against_rival=Significance(3, 4, 1.0)
        ),
        "reliability": dataclasses.replace(evaluation, reliability=evaluation.reliability[:1]),
    }
    for named, measured in now.items():
        differences = find_differences(evaluation, measured)
        assert len(differences) == 1
        assert differences[0].startswith(named)
    group, (_, bin_) = evaluation.groups[0], evaluation.reliability
    for change_of in ({"image_count": 103}, {"accuracy": 0.53}, {"expected": 0.58}):
        groups = (dataclasses.replace(group, **change_of),)
        (difference,) = find_differences(evaluation, dataclasses.replace(evaluation, groups=groups))
        assert difference.startswith("groups")
    for change_of in ({"image_count": 23, "accuracy": 16 / 23}, {"accuracy": 13 / 20}):
        bins = (evaluation.reliability[0], dataclasses.replace(bin_, **change_of))
        (difference,) = find_differences(evaluation, dataclasses.replace(evaluation, reliability=bins))
        assert difference.startswith("reliability")
    slower = (dataclasses.replace(clips[0], share=0.6), *clips[1:])
    served = dataclasses.replace(evaluation.served, clips=slower)
    assert find_differences(evaluation, dataclasses.replace(evaluation, served=served)) == [
        "served, clips: stored happy for angry.mp4, 50% angry, now happy for angry.mp4, 60% angry"
    ]
    missing = {name: metrics for name, metrics in evaluation.served.metrics.items() if name != "ferplus"}
    assert compare_metrics(evaluation.served.metrics, missing, name="served") == [
        "served, ferplus: stored 28 images, now None"
    ]


def test_each_goal_is_judged_by_its_floor_and_its_target(evaluation: Evaluation) -> None:
    goals = {goal.what: goal for goal in list_goals(change(evaluation, "test", accuracy=0.72, calibration_error=0.04))}
    accuracy = goals["accuracy on the test images"]
    assert (accuracy.value, accuracy.meets_floor, accuracy.meets_target) == (0.72, True, False)
    assert not goals["expected calibration error"].meets_target
    assert goals["CPU a face in the served form"].meets_floor
    assert goals["labelled clips told right"].value == 1
    assert not goals["labelled clips told right"].meets_floor
    assert not goals["accuracy lost or won between float32 and the served form"].meets_floor
    assert goals["accuracy by the crowd's votes"].meets_target
    slow = dataclasses.replace(evaluation, served=dataclasses.replace(evaluation.served, cpu_ms=2.1, clips=()))
    goals = {goal.what: goal for goal in list_goals(slow)}
    assert not goals["CPU a face in the served form"].meets_floor
    assert "labelled clips told right" not in goals


def test_the_weakest_emotion_is_named(evaluation: Evaluation) -> None:
    recall = dict.fromkeys(EMOTIONS, 0.9) | {"fear": 0.44, "disgust": None}
    goals = list_goals(change(evaluation, "test", recall=recall))
    assert next(goal for goal in goals if "weakest" in goal.what).what == "recall of the weakest emotion, fear"


def test_a_clip_is_labelled_if_its_name_has_one_emotion(tmp_path: Path) -> None:
    from benchmarks.clips import labelled_clips

    for name in ("eamm_disgusted.mp4", "mead_M1_Surprised_2.mp4", "happy_then_angry.mp4", "street.mp4"):
        (tmp_path / name).touch()
    (tmp_path / "sad_clips").mkdir()
    labels = {path.name: emotion for path, emotion in labelled_clips(tmp_path)}
    assert labels == {"eamm_disgusted.mp4": "disgust", "mead_M1_Surprised_2.mp4": "surprise"}


def test_a_clip_is_answered_by_the_whole_pipeline(
    tmp_path: Path, make_video: Callable[..., Path], astronaut: np.ndarray
) -> None:
    from benchmarks.clips import answer_clips
    from models.emotion_classifier import EmotionModel
    from models.store import shipped_model

    make_video(tmp_path / "happy_smile.mp4", frame_count=6, image=astronaut)
    make_video(tmp_path / "sad_wall.mp4", frame_count=3)
    smile, wall = answer_clips(tmp_path, EmotionModel(shipped_model()))
    assert (smile.answer, smile.is_right, smile.share > 0.9) == ("happy", True, True)
    assert wall == ClipResult("sad_wall.mp4", "sad", None, 0.0)


def test_fers_network_is_as_good_as_measured_elsewhere(shared: Path) -> None:
    """Its classes come in another order than ours: a slip there would show as far fewer right."""
    from benchmarks.fer_network import FerNetwork

    test = load_splits(shared / "data" / "fer2013.tar.gz", leaks="leave_out").test
    try:
        network = FerNetwork(framing=Framing(1, 0, False))
    except ModelError as error:
        lacking(str(error))
    scores = network.classify(test.images_gray)
    assert scores.sum(axis=1) == pytest.approx(np.ones(len(test)), abs=1e-5)
    assert (scores.argmax(axis=1) == test.labels).mean() == pytest.approx(0.659, abs=0.002)


def run_evaluation(faces: Path, directory: Path, figures: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.evaluate", str(faces), "--model", str(directory)]
    return subprocess.run(
        [*command, "--figures", str(figures), *options], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_the_command_stores_figures_reproduces_them_and_notices_another(
    faces: Path, splits: DataSplits, tmp_path: Path
) -> None:
    """Its own process each time: the command sets TensorFlow's threads, which only a fresh one allows."""
    from models.emotion_classifier import ModelDescription, save_model
    from models.emotion_cnn import build_emotion_cnn

    epoch = {"number": 1, "seconds": 60.0}
    epoch |= {f"{part}_{what}": 0.5 for part in ("train", "validation") for what in ("loss", "accuracy")}
    description = ModelDescription(
        name="tiny",
        crop_size_px=48,
        temperature=1.0,
        framing=Framing(1.1, 0.05, True),
        commit=None,
        recipe={"epochs": 1},
        data={"sha256": splits.sha256},
        metrics={},
        history=[epoch],
    )
    directory = save_model(tmp_path, build_emotion_cnn(widths=(8, 16), blocks=(0, 1)), description=description)
    stored = run_evaluation(faces, directory, tmp_path / "figures", "--write-card")
    if "could not be fetched" in stored.stderr:
        lacking(stored.stderr)
    assert stored.returncode == 0, stored.stderr
    added = {path.name for path in directory.iterdir()} - {"model.json", "model.keras", "model.tflite"}
    assert added == {EVALUATION_FILE, "MODEL_CARD.md", "confusion.png", "reliability.png", "curves.png"}
    assert (tmp_path / "figures" / "mistakes.png").is_file()
    assert "fer 25.10.3" in stored.stdout

    evaluation = read_evaluation(directory)
    assert evaluation is not None
    write_evaluation(directory, dataclasses.replace(evaluation, version="tiny-of-another-day"))
    noticed = run_evaluation(faces, directory, tmp_path / "figures")
    assert noticed.returncode == 1, noticed.stderr
    # Everything else is reproduced.
    assert noticed.stdout.splitlines()[-1] == f"version: stored tiny-of-another-day, now {directory.name}"
    assert noticed.stdout.splitlines()[-2].startswith("Pictures:")


def test_a_card_is_not_written_from_images_that_the_model_may_have_seen(faces: Path, tmp_path: Path) -> None:
    from models.store import shipped_model

    refused = run_evaluation(faces, shipped_model(), tmp_path, "--write-card")
    assert refused.returncode == 2
    assert "these are not the images" in refused.stderr
    nowhere = run_evaluation(faces, shipped_model(), tmp_path, "--videos", str(tmp_path / "nowhere"))
    assert (nowhere.returncode, "no such folder of clips" in nowhere.stderr) == (2, True)
