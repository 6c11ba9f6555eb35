"""frames + a detector -> each frame with its faces; only every second or third is looked at where that is enough"""

from collections.abc import Iterable, Iterator
from fractions import Fraction

from ferflow.faces import FaceDetector, intersection_over_union
from ferflow.records import Box, Face, Frame

_MOST_SECONDS = Fraction(1, 10)
# Between two looks: every second frame at 20 to 29 frames a second, every third at 30, every frame below 20.
_STILL = 0.6
# Faces that overlap this much from one look to the next hardly move.


def find_faces(
    frames: Iterable[Frame], detector: FaceDetector, *, most_seconds: Fraction = _MOST_SECONDS
) -> Iterator[tuple[Frame, list[Face]]]:
    """Find the faces of every frame, in order.

    Where frames follow each other closely the detector does not see them all. If it finds the same faces before and
    after the frames that were passed over, they are placed between; if a face comes, goes or moves fast, it sees these
    frames too. Boxes and scores then differ less from those of a look at every frame than these differ from each other
    when the picture is shifted by one pixel (benchmarks/LOG.md).

    Args:
        frames: of one video, in order of time.
        detector: made for this video.
        most_seconds: from one look to the next; 0 looks at every frame.

    Yields:
        Each frame and its faces.
    """
    before: tuple[Frame, list[Face]] | None = None
    passed: list[Frame] = []
    for frame in frames:
        if before is not None and frame.pts + frame.duration - before[0].pts <= most_seconds:
            passed.append(frame)
            continue
        after = frame, detector.detect(frame.image_rgb)
        if before is not None:
            yield from _between(before, after, passed, detector)
        yield after
        before, passed = after, []
    for frame in passed:
        yield frame, detector.detect(frame.image_rgb)


def _between(
    before: tuple[Frame, list[Face]], after: tuple[Frame, list[Face]], passed: list[Frame], detector: FaceDetector
) -> Iterator[tuple[Frame, list[Face]]]:
    pairs = _pairs(before[1], after[1])
    for frame in passed:
        if pairs is None:
            yield frame, detector.detect(frame.image_rgb)
        else:
            share = float((frame.pts - before[0].pts) / (after[0].pts - before[0].pts))
            yield frame, [_mixed(first, second, share) for first, second in pairs]


def _pairs(before: list[Face], after: list[Face]) -> list[tuple[Face, Face]] | None:
    """Each face of two looks; None if they do not show the same ones, hardly moved."""
    if len(before) != len(after):
        return None
    rest = list(after)
    pairs = []
    for face in before:
        partner = max(rest, key=lambda other: intersection_over_union(face.box, other.box))
        if intersection_over_union(face.box, partner.box) < _STILL:
            return None
        rest.remove(partner)
        pairs.append((face, partner))
    return pairs


def _mixed(first: Face, second: Face, share: float) -> Face:
    def mix(a: float, b: float) -> float:
        return a + share * (b - a)

    def mix_points(a: tuple[float, float], b: tuple[float, float]) -> tuple[float, float]:
        return mix(a[0], b[0]), mix(a[1], b[1])

    a, b = first.box, second.box
    return Face(
        box=Box(mix(a.x_min, b.x_min), mix(a.y_min, b.y_min), mix(a.x_max, b.x_max), mix(a.y_max, b.y_max)),
        right_eye_xy=mix_points(first.right_eye_xy, second.right_eye_xy),
        left_eye_xy=mix_points(first.left_eye_xy, second.left_eye_xy),
        score=mix(first.score, second.score),
    )
