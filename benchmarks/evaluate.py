"""emotion model + labelled faces + labelled clips -> every figure of its model card, beside the `fer` package's network

python -m benchmarks.evaluate DATA [--model NAME] [--videos DIR] [--figures DIR] [--write-card]

Prints the figures and where they stand against the goals, and leaves pictures. Exit status 1 where a figure is not the
one that lies beside the model; `--write-card` puts the new ones there and writes the card anew. Three minutes of CPU.
"""

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np

from benchmarks.classifiers import cpu_ms_a_face, keras_classifier, processor
from benchmarks.clips import answer_clips
from benchmarks.fer_network import FerNetwork
from ferflow.errors import ConfigError, FerflowError
from ferflow.faces import resize_faces
from models.emotion_classifier import KERAS_FILE, EmotionModel, read_description
from models.emotion_cnn import CROP_SIZE_PX
from models.face_detector import MediaPipeFaceDetector
from models.store import find_model
from training.dataset import LABELS_FILE, DataSplits, load_splits
from training.evaluation import (
    Candidate,
    ClipResult,
    Evaluation,
    Scores,
    compare_metrics,
    find_differences,
    find_groups,
    has_tie,
    measure_group,
    measure_scores,
    read_crowd,
    read_evaluation,
    score,
    write_evaluation,
)
from training.figures import draw_confusion, draw_curves, draw_figures, draw_reliability
from training.fit import describe_splits
from training.metrics import mcnemar, measure, reliability_bins
from training.model_card import describe_evaluation, write_card

# Crops are enlarged and set in a margin, as a detector for whole pictures expects faces.
_CROP_PX, _MARGINS_PX = 240, (120, 120, 120, 120)


def main() -> int:
    """Evaluate, compare or store; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="DATA", type=Path, help="labelled faces, as `ferflow train` takes them")
    parser.add_argument("--model", default="default", help="emotion model, as in `ferflow analyze`")
    parser.add_argument("--videos", metavar="DIR", type=Path, help="clips whose file name says the emotion")
    parser.add_argument("--figures", metavar="DIR", type=Path, help="where to draw (runs/figures/VERSION)")
    parser.add_argument("--write-card", action="store_true", help="store the figures beside the model")
    args = parser.parse_args()
    try:
        return _run(find_model(args.model), args)
    except FerflowError as error:
        print(error, file=sys.stderr)
        return 2


def _run(directory: Path, args: argparse.Namespace) -> int:
    description = read_description(directory)
    if args.videos is not None and not args.videos.is_dir():
        raise ConfigError(f"{args.videos}: there is no such folder of clips. Correct the path or leave --videos out.")
    _tell(f"Reading {args.data} ...")
    splits = load_splits(args.data, size_px=CROP_SIZE_PX, leaks="leave_out")
    is_its_own = splits.sha256 == description.data.get("sha256")
    if args.write_card and not is_its_own:
        raise ConfigError(
            f"{args.data}: these are not the images that {description.version} was trained beside, so that some of "
            "the test images may have been in its training. Name those, or leave --write-card out."
        )
    table = next((path for path in (args.data / LABELS_FILE, args.data.parent / LABELS_FILE) if path.is_file()), None)
    crowd = None if table is None else read_crowd(table, splits.test.paths)
    evaluation, scores = evaluate_model(directory, splits, crowd=crowd, videos=args.videos)

    figures = args.figures or Path("runs") / "figures" / description.version
    drawn = draw_figures(description.history, scores.test, splits, figures)
    print(describe_evaluation(evaluation))
    print("Pictures:", *drawn)
    if args.write_card:
        write_evaluation(directory, evaluation)
        if description.history:
            draw_curves(description.history, directory / "curves.png")
        draw_confusion(measure(scores.test, splits.test.labels), directory / "confusion.png")
        draw_reliability(scores.test, splits.test.labels, directory / "reliability.png")
        print(f"The card is in {write_card(directory)}")
        return 0
    stored = read_evaluation(directory)
    if not is_its_own or stored is None:
        print("There is nothing to compare this with: other images, or a model that was never evaluated.")
        return 0
    differences = find_differences(stored, evaluation)
    differences += compare_metrics(description.metrics, evaluation.float32.metrics, name="model.json")
    differences += [
        f"model.json, data, {key}: stored {said}, now {now}"
        for key, now in describe_splits(splits).items()
        if (said := description.data.get(key, now)) != now
    ]
    print(*differences or ["Every figure of the model card is reproduced."], sep="\n")
    return 1 if differences else 0


def evaluate_model(
    directory: Path, splits: DataSplits, *, crowd: np.ndarray | None, videos: Path | None
) -> tuple[Evaluation, Scores]:
    """Measure a model in both its forms and the rival, all in this process.

    Args:
        directory: the model.
        splits: the images.
        crowd: int (n, 10), the votes on the test images.
        videos: folder of labelled clips; None asks nothing about clips.

    Returns:
        The figures, and the served form's scores that they were computed from.

    Raises:
        ModelError: a model is missing or does not fit, or the rival cannot be fetched.
    """
    compute = keras_classifier(directory)
    model = EmotionModel(directory)
    rival = FerNetwork(framing=model.framing)
    classifiers = {"served": model.classify, "float32": compute, "rival": rival.classify}
    names = {
        "served": f"{model.version}, as it is served",
        "float32": f"{model.version}, Keras in float32",
        "rival": f"{rival.version}'s network",
    }
    _tell("Timing three networks in turn ...")
    cpu_ms = cpu_ms_a_face(classifiers, size_px=model.crop_size_px)
    photos = {
        "served": model.classify_photos,
        "float32": lambda faces_gray: compute(resize_faces(faces_gray, model.crop_size_px)),
        "rival": rival.classify,
    }
    scores = {}
    for part, classify in photos.items():
        _tell(f"Scoring the images: {names[part]} ...")
        scores[part] = score(classify, splits)
    clips: dict[str, tuple[ClipResult, ...]] = dict.fromkeys(classifiers, ())
    if videos is not None:
        for part, classifier in (("served", model), ("rival", rival)):
            _tell(f"From video to label: {names[part]} ...")
            clips[part] = answer_clips(videos, classifier)
    candidates = {
        part: Candidate(names[part], measure_scores(scores[part], splits, crowd), cpu_ms[part], clips[part])
        for part in classifiers
    }
    _tell("Looking how far the heads lean ...")
    groups = find_groups(splits.test, crowd=crowd, rolls_degrees=lean_of_heads(splits.test.images_gray))
    labels = splits.test.labels
    right = {part: scores[part].test.argmax(axis=1) == labels for part in classifiers}
    evaluation = Evaluation(
        version=model.version,
        data_sha256=splits.sha256,
        model_mb=(directory / KERAS_FILE).stat().st_size / 1e6,
        machine=processor(),
        **candidates,
        served_against_rival=mcnemar(right["served"], right["rival"]),
        crowd_ties=0 if crowd is None else int(has_tie(crowd).sum()),
        groups=tuple(measure_group(group, scores["served"].test, labels) for group in groups),
        reliability=reliability_bins(scores["served"].test.max(axis=1), right["served"], bin_count=10),
    )
    return evaluation, scores["served"]


def lean_of_heads(images_gray: np.ndarray) -> np.ndarray:
    """How far each head leans to a side, by the eyes that the face detector finds: float64 (n,), NaN without a face."""
    leans = np.full(len(images_gray), np.nan)
    with MediaPipeFaceDetector() as detector:
        for row, image in enumerate(images_gray):
            large = cv2.resize(image, (_CROP_PX, _CROP_PX), interpolation=cv2.INTER_CUBIC)
            framed = cv2.copyMakeBorder(large, *_MARGINS_PX, cv2.BORDER_REPLICATE)
            faces = detector.detect(cv2.cvtColor(framed, cv2.COLOR_GRAY2RGB))
            if faces:
                face = max(faces, key=lambda face: face.score)
                right, left = face.right_eye_xy, face.left_eye_xy
                leans[row] = np.degrees(np.arctan2(left[1] - right[1], left[0] - right[0]))
    return leans


def _tell(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
