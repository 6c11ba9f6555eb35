"""`ferflow review` -> crops of the faces that a person should label next"""

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ferflow.storage import place
from flows.arguments import local_path, positive

_PROBLEMS_SHOWN = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "--results",
        metavar="DIR",
        type=place,
        default=Path("results"),
        help="where the faces were found (%(default)s)",
    )
    parser.add_argument(
        "--out", metavar="DIR", type=local_path, default=Path("review"), help="where to put the faces (%(default)s)"
    )
    parser.add_argument(
        "--labelled",
        metavar="DIR",
        type=place,
        default=Path("labelled"),
        help="the sorted faces of before, which are not picked again, a folder or s3://bucket/prefix (%(default)s)",
    )
    parser.add_argument("--count", metavar="N", type=positive, default=200, help="how many faces to pick (%(default)s)")
    parser.add_argument(
        "--random-share",
        metavar="SHARE",
        type=_share,
        default=0.2,
        help="which part of them to draw at random instead of by how unsure the model was, 0 to 1 (%(default)s)",
    )
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="another seed draws others (%(default)s)")
    parser.add_argument(
        "--model",
        metavar="NAME",
        default="default",
        help="the emotion model that is to learn from the faces: it decides how they are cut (%(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Pick faces, write them and say what to do next; exit status 1 if a video was left out."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from ferflow.review import faces_reviewed, write_review
    from ferflow.selection import pick_faces
    from ferflow.storage import Results
    from models.emotion_classifier import read_description
    from models.store import find_model

    model = read_description(find_model(args.model))
    reviewed = faces_reviewed(args.out, args.labelled)
    picked = pick_faces(
        Results(args.results), count=args.count, random_share=args.random_share, seed=args.seed, reviewed=reviewed
    )
    messages = Console(stderr=True, highlight=False, soft_wrap=True)
    with Progress(
        TextColumn("faces"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        console=messages,
        transient=True,
        disable=not messages.is_terminal,
    ) as progress:
        bar = progress.add_task("faces", total=len(picked.faces))
        written = write_review(
            picked.faces,
            args.out,
            framing=model.framing,
            crop_size_px=model.crop_size_px,
            progress=lambda done: progress.update(bar, completed=done),
        )
    problems = [*picked.problems, *written.problems]
    for problem in problems[:_PROBLEMS_SHOWN]:
        messages.print(problem, markup=False)
    if len(problems) > _PROBLEMS_SHOWN:
        messages.print(f"And {len(problems) - _PROBLEMS_SHOWN} more like these.")
    conclusion = _conclusion(
        Counter(face.why for face in written.faces),
        videos=len({face.place.video_id for face in written.faces}),
        face_count=picked.face_count,
        review=args.out,
        labelled=args.labelled,
    )
    Console(highlight=False, soft_wrap=True).print("\n".join(conclusion), markup=False)
    return 1 if problems else 0


def _conclusion(counts: Counter[str], *, videos: int, face_count: int, review: Path, labelled: Path) -> Sequence[str]:
    from ferflow.emotions import EMOTIONS
    from ferflow.review import UNSORTED, UNSURE
    from ferflow.selection import LEAST_SURE, RANDOM

    if not counts:
        return [f"No new face to review: {face_count} were there to pick from. Analyse more videos."]
    return [
        f"{counts.total()} of {face_count} faces to sort, from {videos} {'video' if videos == 1 else 'videos'}: "
        f"{counts[LEAST_SURE]} of which the model was least sure, {counts[RANDOM]} drawn at random.",
        f"Sort: move each picture from {review / UNSORTED} into the folder beside it that says what the face shows",
        f"      ({', '.join(EMOTIONS)}), or into {UNSURE} if it shows none of these.",
        f"Then: move the seven folders into {labelled}, from where training takes them.",
    ]


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError("must be from 0 to 1")
    return value
