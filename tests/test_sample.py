"""The sample clip shows what the project does: two people, motion, sound."""

import json
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from ferflow.frames import VideoReader
from ferflow.sample import make_sample_clip
from ferflow.tracks import Tracker
from models.face_detector import MediaPipeFaceDetector


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sample") / "two people.mp4"
    make_sample_clip(path)
    return path


def test_both_people_are_found_in_every_frame_and_followed(clip: Path) -> None:
    tracker, sightings = Tracker(), Counter[int]()
    with MediaPipeFaceDetector() as detector, VideoReader(clip) as reader:
        for frame in reader.frames():
            sightings.update(tracker.assign(detector.detect(frame.image_rgb), float(frame.pts)))
    assert reader.info.frame_count == 100
    # The first is there from the start; the second appears after 0.8 seconds.
    assert sightings == {0: 100, 1: 80}


def test_it_plays_anywhere_and_has_sound(clip: Path, ffprobe: str) -> None:
    command = [ffprobe, "-v", "error", "-show_streams", "-of", "json", str(clip)]
    video, sound = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["streams"]
    assert (video["codec_name"], video["pix_fmt"], video["width"], video["height"]) == ("h264", "yuv420p", 1280, 720)
    assert (sound["codec_name"], sound["channels"]) == ("aac", 2)
    assert float(video["duration"]) == 4
    assert float(sound["duration"]) == pytest.approx(4, abs=0.05)
