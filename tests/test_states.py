"""Every page in the states that are not the usual one: nothing is wider than its screen, and every text can be read.

The usual ones are looked at where they are tested: test_viewer.py, test_videos_page.py, test_model_page.py, ...
A picture of each is left among the test's temporary files.
"""

import contextlib
import time

import pytest
from browser import faint_texts, opened, serve_viewer
from made_results import add_failure, add_video
from playwright.sync_api import expect

from ferflow.progress import Teller
from ferflow.rows import write_segments
from ferflow.sources import open_results

WIDTHS = {390: 844, 1440: 1000}
LONG = "a-very-long-name-without-any-space-as-cameras-and-people-write-them-" * 2
NOBODY = {"face_count": 0, "track_count": 0, "dominant_emotion": None, "emotion_shares": None}
IDS = {name: f"{number:016x}" for number, name in enumerate(("failed", "nobody", "damaged", "noted", "long"), 0xA0)}


@pytest.fixture(scope="module")
def viewer(tmp_path_factory):
    """A page over a video in each state."""
    folder = tmp_path_factory.mktemp("states")
    results = open_results(folder / "results")
    add_failure(results, f"/videos/{LONG}.mp4")
    add_video(
        results,
        f"/videos/{LONG}.mp4",
        video_id=IDS["failed"],
        **{"status": "failed", "error": f"{LONG}.mp4: its index (moov) is missing; copy it again.", "info": None},
        **NOBODY,
    )
    for name in ("nobody", "damaged"):
        add_video(results, f"/videos/{name}.mp4", video_id=IDS[name], **NOBODY)
        segments = results.rows("segments", IDS[name])
        write_segments(segments, [], video_id=IDS[name], model_version="m", parts=results.parts)
    faces = results.rows("faces", IDS["damaged"])
    faces.write_bytes(faces.read_bytes()[:-20])
    add_video(results, "/videos/noted.mp4", video_id=IDS["noted"], error="its sound cannot be read.", **NOBODY)
    segments = results.rows("segments", IDS["noted"])
    write_segments(segments, [], video_id=IDS["noted"], model_version="m", parts=results.parts)
    (results.table("videos") / "0123456789abcdef.parquet").write_bytes(b"PAR1 no table PAR1")
    teller = Teller(results, IDS["long"], f"/inbox/{LONG}.mp4", stages=("faces", "drawing"))
    teller._began_at = teller._told_at = time.time() - 60
    teller.tell("faces", 1000, 4000)
    with contextlib.ExitStack() as ended:
        ended.callback(teller.end)
        yield ended.enter_context(serve_viewer(folder))


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """A page over a folder in which nothing has been analysed."""
    with serve_viewer(tmp_path_factory.mktemp("empty")) as started:
        yield started


def looked_at(browser, url, said, tmp_path):
    """Open a page at each width and tell what is wrong with its look."""
    wrong = []
    for width, height in WIDTHS.items():
        with opened(browser, width=width, height=height) as page:
            page.goto(url)
            expect(page.get_by_text(said).first).to_be_visible()
            page.wait_for_timeout(1000)
            page.screenshot(path=tmp_path / f"{width}.png")
            expect(page.get_by_test_id("stException")).to_have_count(0)
            wider = page.get_by_test_id("stMain").evaluate("main => main.scrollWidth - main.clientWidth")
            wider = max(wider, page.evaluate("document.documentElement.scrollWidth") - width)
            wrong += [f"{width}: {wider} pixels too wide"] if wider > 0 else []
            wrong += [f"{width}: {text}" for text in faint_texts(page)]
    return wrong


@pytest.mark.parametrize(
    ("path", "said"),
    [
        pytest.param("", "12% of all work", id="drop-at-work"),
        pytest.param("videos?name=nothing-is-called-so", "No video fits these filters.", id="videos-none-fits"),
        pytest.param("videos", "A file of the table of videos is damaged", id="videos-damaged"),
        pytest.param("video", "No video is chosen", id="video-none"),
        pytest.param("video?video=ffffffffffffffff", "There is no such video", id="video-no-such"),
        pytest.param(f"video?video={IDS['failed']}", "This video could not be analysed.", id="video-failed"),
        pytest.param(f"video?video={IDS['nobody']}", "No face was found in 10 s of video.", id="video-without-faces"),
        pytest.param(f"video?video={IDS['damaged']}", "This video cannot be shown", id="video-damaged"),
        pytest.param(f"video?video={IDS['noted']}", "Note: its sound cannot be read.", id="video-with-note"),
    ],
)
def test_a_state_fits_its_screen_and_can_be_read(viewer, browser, tmp_path, path, said):
    assert looked_at(browser, f"{viewer.url}/{path}", said, tmp_path) == []


@pytest.mark.parametrize(
    ("path", "said"), [("", "What happens then"), ("videos", "No video has been analysed yet."), ("live", "The camera")]
)
def test_an_empty_folder_fits_its_screen_and_can_be_read(empty, tmp_path, browser, path, said):
    assert looked_at(browser, f"{empty.url}/{path}", said, tmp_path) == []


def test_a_page_without_its_bucket_fits_its_screen_and_can_be_read(s3_server, bucket, browser, tmp_path):
    wrong_key = {"AWS_SECRET_ACCESS_KEY": "not the right one", "FERFLOW_CACHE": str(tmp_path / "cache")}
    with serve_viewer(tmp_path, "--results", str(bucket / "results"), **wrong_key) as viewer:
        for path in ("", "videos", f"video?video={IDS['nobody']}"):
            seen = tmp_path / f"seen {path[:6]}"
            seen.mkdir()
            assert looked_at(browser, f"{viewer.url}/{path}", "cannot be read. s3://", seen) == [], path
