"""A clip is decoded once: who draws on it has the frames that were analysed, and they are those that the file holds."""

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from ferflow.config import Settings
from ferflow.frames import VideoReader
from ferflow.kept_frames import keeping, take
from ferflow.records import Frame
from ferflow.sources import open_results
from ferflow.stages import analyze_video, annotate_video
from ferflow.storage import content_id
from models.warm import face_finder, warm_classifier

SIZE_WH = (8, 6)
FIVE_BYTES = 5 * 8 * 6 * 3


@pytest.fixture(autouse=True)
def nothing_kept() -> None:
    take("", SIZE_WH)


def frames(count: int) -> Iterator[Frame]:
    for index in range(count):
        yield Frame(index, pts=index, duration=1, image_rgb=np.full((*SIZE_WH[::-1], 3), index, np.uint8))


def test_all_frames_are_there_once():
    given = list(keeping(frames(5), video_id="a", expected=5, most_bytes=FIVE_BYTES))
    taken = take("a", SIZE_WH)
    assert taken is not None
    assert [frame.index for frame in taken] == [frame.index for frame in given] == [0, 1, 2, 3, 4]
    assert take("a", SIZE_WH) is None


@pytest.mark.parametrize(
    ("expected", "asked", "size_wh"),
    [
        pytest.param(5, "b", SIZE_WH, id="another video"),
        pytest.param(5, "a", (6, 8), id="another size"),
        pytest.param(50, "a", SIZE_WH, id="expected to be long"),
        pytest.param(1, "a", SIZE_WH, id="longer than expected"),
        pytest.param(None, "a", SIZE_WH, id="of a length that nothing tells"),
    ],
)
def test_what_is_not_fit_or_too_much_is_not_there(expected, asked, size_wh):
    most_bytes = FIVE_BYTES - (expected == 1)
    assert len(list(keeping(frames(5), video_id="a", expected=expected, most_bytes=most_bytes))) == 5
    assert take(asked, size_wh) is None


def test_of_a_video_that_was_not_read_to_its_end_nothing_is_there():
    assert next(keeping(frames(5), video_id="a", expected=5, most_bytes=FIVE_BYTES)).index == 0
    assert take("a", SIZE_WH) is None


@pytest.mark.parametrize("settings", [Settings(), Settings(annotated_short_side_px=100), Settings(max_fps=5)])
def test_what_is_drawn_is_the_same_whether_it_was_decoded_once_or_twice(
    settings, make_video, astronaut, tmp_path, monkeypatch
):
    file = make_video(tmp_path / "clip.mp4", frame_count=25, image=lambda index: np.roll(astronaut, 2 * index, axis=1))
    readings = []
    read = VideoReader.frames
    monkeypatch.setattr(VideoReader, "frames", lambda *given, **options: readings.append(1) or read(*given, **options))
    results = open_results(tmp_path / "results")
    classifier = warm_classifier(settings.model)
    video_id = content_id(file)
    faces = analyze_video(
        file, results, video_id=video_id, detector=face_finder, classifier=classifier, settings=settings
    )
    once = annotate_video(file, faces, results, settings=settings).read_bytes()
    assert len(readings) == (1 if settings == Settings() else 2)
    results.annotated(str(file), video_id).unlink()
    drawing = threading.Thread(target=annotate_video, args=(file, faces, results), kwargs={"settings": settings})
    drawing.start()
    drawing.join()
    assert len(readings) == (2 if settings == Settings() else 3)
    assert results.annotated(str(file), video_id).read_bytes() == once
