"""The page, used as a person uses it: a real browser, a real watch, real clips."""

import contextlib
import http.client
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from browser import FERFLOW, faint_texts, opened, serve_viewer
from lacking import lacking
from made_results import BEGAN, INFO, add_video
from playwright.sync_api import Page, expect
from prefect_server import end, eventually, without_prefect
from s3_server import in_trouble

from ferflow.compaction import compact
from ferflow.emotions import EMOTIONS
from ferflow.errors import SourceError
from ferflow.merged_rows import find_rows, find_video, list_big
from ferflow.progress import Teller
from ferflow.records import Analysis, Box, Face, FaceRow, Segment
from ferflow.rows import TABLES, write_faces, write_segments
from ferflow.sample import make_sample_clip
from ferflow.sources import open_results
from ferflow.storage import Results, content_id
from flows.video_page import describe_video
from viewer.files import local_file
from viewer.prefect_run import run_url

CLIP = "happy_then_angry_same_track.mp4"
ODD_NAME = "<img src=x onerror=alert(1)> & 'Tom' \"x\" *a* `b` $c$.mp4"


@contextlib.contextmanager
def watching(folder: Path) -> Iterator[None]:
    """`ferflow watch` in a folder."""
    (folder / "quick.toml").write_text("settle_seconds = 0.5\nsecond_look_seconds = 1\n")
    with (folder / "watch.log").open("wb") as log:
        process = subprocess.Popen(
            [FERFLOW, "watch", "--no-prefect", "--config", "quick.toml"],
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=without_prefect(),
            start_new_session=True,
        )
    try:
        yield
    finally:
        end(process)


@pytest.fixture(scope="module")
def viewer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    with serve_viewer(folder) as started, watching(folder):
        yield started


@pytest.fixture(scope="module")
def clip(viewer, shared, browser):
    """The id of a real clip that was dropped on the page, when its result is shown there."""
    file = shared / "videos" / CLIP
    with opened(browser) as page:
        drop(page, viewer.url, file)
        expect(page.get_by_text("Queued").or_(page.get_by_text("frames,")).first).to_be_visible()
        expect(page.get_by_text("One person in 5.8 s of video, mostly happy")).to_be_visible(timeout=180_000)
    return content_id(file)


def now_played(page: Page) -> float:
    seconds: float = page.locator("video").evaluate("video => video.currentTime")
    return seconds


def drop(page: Page, url: str, *files: Path) -> None:
    page.goto(url)
    page.locator("input[type=file]").set_input_files(files)


def open_video(page: Page, viewer, video_id: str) -> None:
    page.goto(f"{viewer.url}/video?video={video_id}")
    expect(page.get_by_text("Frame by frame")).to_be_visible()
    expect(page.get_by_role("slider")).to_be_visible()


def analysed(viewer, video: Path) -> str:
    """Have the watch analyse a video, and give its id."""
    shutil.copy(video, viewer.folder / "inbox" / video.name)
    results, video_id = open_results(viewer.folder / "results"), content_id(video)
    eventually(lambda: find_video(results, video_id), "the result")
    return video_id


def column_of(table: pa.Table, name: str, values: list[float]) -> tuple[int, pa.Field, pa.Array]:
    """What puts other values into a column of a table."""
    at = table.schema.get_field_index(name)
    return at, table.schema.field(at), pa.array(values, table.schema.field(at).type)


def status_of(viewer, path: str, **headers: str) -> int:
    address = viewer.url.removeprefix("http://")
    connection = http.client.HTTPConnection(address, timeout=60)
    with contextlib.closing(connection):
        connection.putrequest("GET", path, skip_host=True)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        return connection.getresponse().status


def listening_on(viewer) -> list[str]:
    """The addresses on which the page waits for others, as Linux writes them."""
    port = int(viewer.url.rpartition(":")[2])
    waiting = [
        line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:] if line.split()[3] == "0A"
    ]
    return [address.split(":")[0] for address in waiting if address.endswith(f":{port:04X}")]


def runs_models(viewer) -> bool:
    """Whether the page's process has loaded what looks for faces or names emotions."""
    loaded = Path(f"/proc/{viewer.pid}/maps").read_text()
    return re.search("mediapipe|litert|tensorflow", loaded) is not None


@pytest.mark.parametrize("name", ["Videos", "Model", "Live"])
def test_each_page_opens_without_any_result(viewer, page, name):
    page.goto(viewer.url)
    page.get_by_role("link", name=name, exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_have_text(name)
    expect(page.get_by_test_id("stException")).to_have_count(0)


def test_a_dropped_clip_is_analysed_and_its_result_shown_without_a_reload(viewer, clip, shared):
    (landed,) = [path for path in (viewer.folder / "inbox").iterdir() if path.name == CLIP]
    assert landed.read_bytes() == (shared / "videos" / CLIP).read_bytes()


def test_the_same_bytes_again_give_the_earlier_result_at_once(viewer, clip, page, shared, tmp_path):
    again = shutil.copy(shared / "videos" / CLIP, tmp_path / "another name.mp4")
    drop(page, viewer.url, Path(again))
    page.get_by_role("link", name="See when, and who").click()
    expect(page).to_have_url(f"{viewer.url}/video?video={clip}")
    expect(page.get_by_role("heading", level=1)).to_have_text(CLIP)
    assert not (viewer.folder / "inbox" / "another name.mp4").exists()


def test_the_slider_moves_through_the_frames(viewer, clip, page):
    open_video(page, viewer, clip)
    expect(page.get_by_text("Frame 0 (the last is 144), at 0:00.00")).to_be_visible()
    before = page.get_by_test_id("stImage").locator("img").get_attribute("src")
    slider = page.get_by_role("slider")
    slider.focus()
    slider.press("End")
    expect(page.get_by_text("Frame 144 (the last is 144), at 0:05.76")).to_be_visible()
    expect(page.get_by_text("#0 looks angry in this frame")).to_be_visible()
    assert page.get_by_test_id("stImage").locator("img").get_attribute("src") != before
    page.get_by_role("button", name="Back").click()
    expect(page.get_by_text("Frame 143 (the last is 144), at 0:05.72")).to_be_visible()
    page.get_by_text("frames", exact=True).click()
    page.get_by_role("slider", name="Frame").press("ArrowRight")
    expect(page.get_by_text("Frame 144 (")).to_be_visible()


def test_the_bars_of_a_frame_are_the_probabilities_of_its_row(viewer, clip, page):
    rows = pq.read_table(viewer.folder / "results" / "faces" / f"{clip}.parquet").to_pylist()
    open_video(page, viewer, clip)
    expect(page.get_by_text("Frame 0 (")).to_be_visible()
    bars = page.get_by_role("group", name="Probabilities of #0")
    shown = dict(
        zip(bars.locator(".ff-name").all_inner_texts(), bars.locator(".ff-value").all_inner_texts(), strict=True)
    )
    assert shown == {emotion: f"{rows[0][emotion]:.0%}" for emotion in shown}
    assert len(shown) == 7


def test_the_shares_and_counts_of_a_video_are_those_of_its_rows(viewer, clip, page):
    results = open_results(viewer.folder / "results")
    rows = pd.read_parquet(results.rows("faces", clip))
    segments = pd.read_parquet(results.rows("segments", clip))
    # Of one person: a row is in the last segment that has begun.
    begun = segments["start_seconds"].searchsorted(rows["pts_seconds"], side="right") - 1
    labels = segments["emotion"].iloc[begun].to_numpy(str)
    seconds = rows["frame_seconds"].to_numpy()
    shares = {name: seconds[labels == name].sum() / seconds.sum() for name in EMOTIONS}
    open_video(page, viewer, clip)
    bars = page.get_by_role("group", name="Share of the time with a face of each emotion")
    shown = dict(
        zip(bars.locator(".ff-name").all_inner_texts(), bars.locator(".ff-value").all_inner_texts(), strict=True)
    )
    assert shown == {name: f"{shares[name]:.0%} · {(labels == name).sum()}" for name in EMOTIONS}
    (dominant,) = pd.read_parquet(results.rows("videos", clip))["dominant_emotion"]
    assert dominant == max(EMOTIONS, key=shares.__getitem__)
    expect(page.locator(".ff-lead")).to_contain_text(
        f"mostly {dominant}: {shares[dominant]:.0%} of the time with a face"
    )


def test_a_click_on_a_segment_leads_to_it(viewer, clip, page):
    segments = pq.read_table(viewer.folder / "results" / "segments" / f"{clip}.parquet").to_pylist()
    before, after = segments
    assert before["emotion"] == "happy" != after["emotion"]
    open_video(page, viewer, clip)
    page.get_by_role("button", name=f"#0 {after['emotion']} from").click()
    start = after["start_seconds"]
    expect(page.get_by_text(f"at 0:{start:05.2f}")).to_be_visible()
    eventually(lambda: abs(now_played(page) - start) < 0.05, "the player")


def test_each_click_on_a_segment_moves_the_player_also_when_it_has_played_on(viewer, clip, page):
    open_video(page, viewer, clip)
    _, after = pq.read_table(viewer.folder / "results" / "segments" / f"{clip}.parquet").to_pylist()
    start = after["start_seconds"]
    for _ in range(2):
        page.get_by_role("button", name=f"#0 {after['emotion']} from").click()
        eventually(lambda: abs(now_played(page) - start) < 0.05, "the player")
        expect(page.get_by_text(f"at 0:{start:05.2f}")).to_be_visible()
        page.wait_for_timeout(500)
        page.locator("video").evaluate("video => { video.currentTime = 1 }")
        eventually(lambda: abs(now_played(page) - 1) < 0.05, "the player elsewhere")


def test_the_player_follows_the_slider_and_the_slider_does_not_follow_the_player(viewer, clip, page):
    open_video(page, viewer, clip)
    page.get_by_role("slider").focus()
    page.get_by_role("slider").press("End")
    expect(page.get_by_text("Frame 144 (")).to_be_visible()
    eventually(lambda: abs(now_played(page) - 5.76) < 0.05, "the player")
    page.locator("video").evaluate("video => { video.muted = true; video.currentTime = 1; return video.play() }")
    eventually(lambda: now_played(page) > 1.1, "the video to play")
    page.locator("video").evaluate("video => video.pause()")
    stopped_at = now_played(page)
    page.get_by_text("frames", exact=True).click()
    expect(page.get_by_role("slider", name="Frame")).to_be_visible()
    expect(page.get_by_text("Frame 144 (")).to_be_visible()
    assert now_played(page) == stopped_at


def test_a_step_of_the_slider_does_not_send_a_long_timeline_again(viewer, page, make_video, astronaut, tmp_path):
    results = open_results(viewer.folder / "results")
    segments = [Segment(0, EMOTIONS[number % 7], number / 100, (number + 1) / 100, 0.7) for number in range(1000)]
    added = add_video(results, "/long.mp4", segments=segments, annotated_path="annotated/long.mp4")
    face = Face(Box(10, 10, 90, 90), (35, 40), (65, 40), 0.9)
    rows = [FaceRow(number, number / 10 + 0.005, 0.1, 0, face, (1.0, *[0.0] * 6)) for number in range(20)]
    analysis = Analysis(added.video_id, "/long.mp4", "m", "s", BEGAN, INFO)
    write_faces(results.rows("faces", added.video_id), rows, lambda: analysis, parts=results.parts)
    annotated = results.root / "annotated" / "long.mp4"
    try:
        make_video(annotated, frame_count=20, image=astronaut)
        received: list[int] = []
        page.on("websocket", lambda socket: socket.on("framereceived", lambda data: received.append(len(data))))
        open_video(page, viewer, added.video_id)
        page.wait_for_timeout(1000)
        assert sum(received) > 100_000, "the timeline is sent once"
        received.clear()
        page.get_by_role("slider").press("End")
        expect(page.get_by_text("Frame 19 (")).to_be_visible()
        page.wait_for_timeout(500)
        assert sum(received) < 30_000
        line = page.locator(".now").first
        assert line.evaluate("line => line.offsetLeft / line.parentElement.offsetWidth") == pytest.approx(
            0.19, abs=0.02
        )
    finally:
        annotated.unlink()
        for table in ("videos", "faces", "segments"):
            results.rows(table, added.video_id).unlink()


def test_what_the_pages_need_is_loaded_before_anybody_opens_one_and_passed_over_when_garbage_is_collected():
    code = (
        "import asyncio, gc, sys; from viewer.server import app, ready\n"
        "async def opened():\n"
        "    async with ready(app):\n"
        "        print(gc.get_freeze_count(), 'viewer.video' in sys.modules)\n"
        "asyncio.run(opened())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    frozen, is_loaded = done.stdout.split()
    assert int(frozen) > 50_000, done.stderr
    assert is_loaded == "True"


def test_no_page_but_that_of_the_camera_loads_a_model(viewer, clip, page, tmp_path):
    with serve_viewer(tmp_path, "--results", str(viewer.folder / "results")) as other:
        for name in ("", "videos", "model"):
            page.goto(f"{other.url}/{name}")
            expect(page.get_by_role("heading", level=1)).to_be_visible()
        open_video(page, other, clip)
        page.get_by_role("slider").press("End")
        expect(page.get_by_text("Frame 144 (")).to_be_visible()
        assert runs_models(other) is False
        page.goto(f"{other.url}/live")
        expect(page.get_by_text("The camera is off.")).to_be_visible()
        assert runs_models(other) is True


def test_the_annotated_video_plays(viewer, clip, page):
    open_video(page, viewer, clip)
    video = page.locator("video")
    eventually(lambda: video.evaluate("video => video.readyState") >= 2, "a frame of the video")
    assert video.evaluate("video => [video.videoWidth, video.videoHeight]") == [640, 360]


def test_rows_are_taken_away_as_csv_and_parquet(viewer, clip, page, tmp_path):
    expected = pd.read_parquet(viewer.folder / "results" / "faces" / f"{clip}.parquet")
    open_video(page, viewer, clip)
    for label, read in (("Rows as CSV", pd.read_csv), ("Rows as Parquet", pd.read_parquet)):
        with page.expect_download() as download:
            page.get_by_role("link", name=label).click()
        path = tmp_path / download.value.suggested_filename
        download.value.save_as(path)
        rows = read(path)
        assert list(rows.columns) == list(expected.columns)
        assert len(rows) == 145
        for name in expected.columns:
            if expected[name].dtype.kind == "f":
                np.testing.assert_allclose(rows[name], expected[name], rtol=1e-6)
            else:
                assert rows[name].astype(str).tolist() == expected[name].astype(str).tolist()


@pytest.mark.parametrize(("label", "begins"), [("Annotated video", b"ftyp"), ("Timeline picture", b"\x89PNG")])
def test_pictures_are_taken_away(viewer, clip, page, tmp_path, label, begins):
    open_video(page, viewer, clip)
    with page.expect_download() as download:
        page.get_by_role("link", name=label).click()
    download.value.save_as(tmp_path / "taken")
    assert begins in (tmp_path / "taken").read_bytes()[:12]
    assert download.value.suggested_filename.startswith("happy_then_angry_same_track.")


def test_an_upload_is_not_held_in_memory_when_it_has_been_taken(viewer, clip, page, shared, tmp_path):
    large = tmp_path / "large.mp4"
    padding = 100_000_000
    large.write_bytes((shared / "videos" / CLIP).read_bytes() + padding.to_bytes(4, "big") + b"free")
    os.truncate(large, large.stat().st_size + padding - 8)
    before = viewer.memory_mb
    try:
        drop(page, viewer.url, large)
        expect(
            page.get_by_text("Queued").or_(page.get_by_text("frames,")).or_(page.get_by_text("See when")).first
        ).to_be_visible()
        eventually(lambda: viewer.memory_mb < before + 50, "the memory to be given back")
    finally:
        (viewer.folder / "inbox" / "large.mp4").unlink()


def test_a_broken_file_is_refused_with_its_reason(viewer, page, shared, tmp_path):
    (tmp_path / "notes.mp4").write_text("These are no pictures.\n" * 20)
    drop(page, viewer.url, shared / "videos" / "truncated_no_moov.mp4", tmp_path / "notes.mp4")
    alerts = page.get_by_role("alert")
    expect(alerts).to_have_count(2)
    expect(alerts.last).to_have_text(
        "truncated_no_moov.mp4: its index (moov) is missing: the recording or the copy was cut off; copy or record it "
        "again."
    )
    expect(alerts.first).to_have_text("notes.mp4: this is a text file, not a video, whatever its name says.")
    assert not [
        path.name for path in (viewer.folder / "inbox").iterdir() if path.name != CLIP and "img" not in path.name
    ]


def test_a_name_of_html_and_markdown_is_a_name(viewer, clip, page, make_video, tmp_path):
    said: list[str] = []
    page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    odd = make_video(tmp_path / "odd" / "odd.mp4", frame_count=2)
    odd = odd.rename(odd.with_name(ODD_NAME.replace("/", "")))
    drop(page, viewer.url, odd)
    # A browser sends its quotation marks as %22.
    kept = "_img src=x onerror=alert(1)_ & 'Tom' _x_ _a_ _b_ $c$.mp4"
    expect(page.get_by_text(kept)).to_be_visible()
    expect(page.get_by_text("No face was found in 0.2 s of video.")).to_be_visible(timeout=180_000)
    page.get_by_role("link", name="See when, and who").click()
    expect(page.get_by_role("heading", level=1)).to_have_text(kept)
    expect(page.get_by_text("No face in this frame.")).to_be_visible()
    assert said == []


def test_a_video_that_failed_shows_its_reason(viewer, clip, page, tmp_path):
    (viewer.folder / "inbox" / "empty.mp4").write_bytes(b"")
    video_id = content_id(viewer.folder / "inbox" / "empty.mp4")
    results = open_results(viewer.folder / "results")
    eventually(lambda: find_video(results, video_id), "the failed row")
    page.goto(f"{viewer.url}/video?video={video_id}")
    expect(page.get_by_role("alert")).to_have_text("The file is empty (0 bytes); copy or record it again.")


def test_work_on_a_video_is_shown_with_the_time_left(viewer, clip, page):
    results = open_results(viewer.folder / "results")
    teller = Teller(results, "0123456789abcdef", "/inbox/long.mp4", stages=("faces", "drawing"))
    teller._began_at = teller._told_at = time.time() - 60
    teller.tell("faces", 1000, 4000)
    try:
        page.goto(viewer.url)
        expect(
            page.get_by_text("12% of all work, about 7 minutes left. Now: looking for faces, 1,000 of 4,000 frames")
        ).to_be_visible()
    finally:
        teller.end()
    expect(page.get_by_text("At work now")).to_have_count(0)


def test_a_file_that_waits_does_not_have_the_whole_table_listed(page, make_video, tmp_path):
    if shutil.which("strace") is None:
        lacking("no strace: `sudo apt-get install strace`")
    add_video(open_results(tmp_path / "results"), "/other.mp4")
    with serve_viewer(tmp_path) as viewer, (tmp_path / "calls.txt").open("wb") as calls:
        drop(page, viewer.url, make_video(tmp_path / "made" / "a.mp4", frame_count=2))
        expect(page.get_by_text("Queued")).to_be_visible()
        page.wait_for_timeout(2000)
        command = ["strace", "-f", "-qq", "-y", "-e", "trace=getdents64,statx,newfstatat,stat", "-p", str(viewer.pid)]
        with subprocess.Popen(command, stdout=calls, stderr=calls) as seen:
            page.wait_for_timeout(5000)
            seen.terminate()
    told = (tmp_path / "calls.txt").read_text()
    assert "results/videos/" in told, "it is looked for"
    assert not re.search(r"getdents64\(\d+<[^>]*results/videos>", told)


def test_a_file_on_its_way_is_not_lost_while_another_is_taken(viewer, page, make_video, tmp_path):
    first, second = (make_video(tmp_path / name, frame_count=n) for name, n in (("first.mp4", 21), ("second.mp4", 22)))
    held = []
    page.route(
        "**/upload_file/**", lambda route: held.append(route) if route.request.method == "PUT" else route.continue_()
    )
    drop(page, viewer.url, first)
    eventually(lambda: page.wait_for_timeout(100) or held, "the first one to be sent")
    with page.expect_response("**/upload_file/**"):
        held.pop().continue_()
    page.locator("input[type=file]").set_input_files(second)
    expect(page.locator("strong", has_text="first.mp4")).to_be_visible()
    page.wait_for_timeout(2000)
    eventually(lambda: page.wait_for_timeout(100) or held, "the second one to be sent")
    held.pop().continue_()
    expect(page.locator("strong", has_text="second.mp4")).to_be_visible()


def test_what_is_refused_stays_to_be_read_beside_what_is_taken(page, make_video, tmp_path):
    good = make_video(tmp_path / "made" / "good.mp4", frame_count=3)
    for name, size in (("notes.txt", 10), ("large.mp4", 2_000_000)):
        (tmp_path / name).write_bytes(b"0" * size)
    (tmp_path / "view.toml").write_text("max_upload_mb = 1\n")
    with serve_viewer(tmp_path, "--config", "view.toml") as viewer:
        drop(page, viewer.url, good, tmp_path / "notes.txt", tmp_path / "large.mp4")
        expect(page.get_by_text("Queued")).to_be_visible()
        expect(page.get_by_text("notes.txt: this is no kind of video that is taken here")).to_be_visible()
        too_large = page.get_by_text("File must be 1.0MB or smaller.")
        expect(too_large).to_be_visible()
        assert too_large.bounding_box()["height"] > 5, "it can be read"
        expect(page.get_by_test_id("stFileChip").locator("visible=true")).to_have_count(1)
        assert faint_texts(page) == []
    assert [path.name for path in (tmp_path / "inbox").iterdir()] == ["good.mp4"]


def test_several_files_of_all_kinds_are_dropped_at_once(viewer, page, make_video, astronaut, tmp_path):
    kinds = {"mov": "libx264", "avi": "mpeg4", "flv": "flv", "mkv": "libx264", "webm": "libvpx"}
    files = [
        make_video(tmp_path / f"kind.{suffix}", frame_count=5, image=astronaut, codec=codec)
        for suffix, codec in kinds.items()
    ]
    drop(page, viewer.url, *files)
    for file in files:
        expect(page.locator("strong", has_text=file.name)).to_be_visible()
    expect(page.get_by_text("One person in 0.5 s of video")).to_have_count(len(files), timeout=180_000)
    expect(page.get_by_role("link", name="See when, and who")).to_have_count(len(files))


def test_of_two_people_one_can_be_chosen(viewer, page, tmp_path):
    clip = tmp_path / "two_people.mp4"
    make_sample_clip(clip)
    shutil.copy(clip, viewer.folder / "inbox" / clip.name)
    results = open_results(viewer.folder / "results")
    eventually(lambda: find_video(results, content_id(clip)), "the result")
    open_video(page, viewer, content_id(clip))
    expect(page.get_by_text("2 people in 4 s of video")).to_be_visible()
    page.get_by_role("slider").press("End")
    people = [page.get_by_role("group", name=f"Probabilities of #{track}") for track in (0, 1)]
    stretches = [page.get_by_role("button", name=re.compile(f"^#{track} ")) for track in (0, 1)]
    for shown in [*people, *(stretch.first for stretch in stretches)]:
        expect(shown).to_be_visible()
    page.get_by_role("radiogroup", name="Person").get_by_text("#1", exact=True).click()
    expect(people[0]).to_have_count(0)
    expect(stretches[0]).to_have_count(0)
    expect(people[1]).to_be_visible()
    expect(stretches[1].first).to_be_visible()
    # She comes later.
    page.get_by_role("slider").press("Home")
    expect(page.get_by_text("#1 is not in this frame.")).to_be_visible()


def test_rows_that_cannot_be_read_are_told_in_a_sentence(viewer, page, make_video, tmp_path):
    damaged = make_video(tmp_path / "damaged.mp4", frame_count=3)
    shutil.copy(damaged, viewer.folder / "inbox" / damaged.name)
    results, video_id = open_results(viewer.folder / "results"), content_id(damaged)
    eventually(lambda: find_video(results, video_id), "the result")
    faces = viewer.folder / "results" / "faces" / f"{video_id}.parquet"
    faces.write_bytes(faces.read_bytes()[:-20])
    page.goto(f"{viewer.url}/video?video={video_id}")
    expect(page.get_by_role("heading", name="This video cannot be shown")).to_be_visible()
    expect(page.get_by_role("alert")).to_contain_text(faces.name)
    expect(page.get_by_test_id("stException")).to_have_count(0)


def test_while_a_video_is_analysed_anew_its_page_says_so(viewer, page, make_video, astronaut, tmp_path):
    video_id = analysed(viewer, make_video(tmp_path / "anew.mp4", frame_count=4, image=astronaut))
    segments = viewer.folder / "results" / "segments" / f"{video_id}.parquet"
    table = pq.read_table(segments)
    later = table.set_column(*column_of(table, "start_seconds", [0.2]))
    pq.write_table(later, segments)
    page.goto(f"{viewer.url}/video?video={video_id}")
    expect(page.get_by_role("alert")).to_contain_text("Its tables are of two analyses: it is being analysed anew")
    expect(page.get_by_test_id("stException")).to_have_count(0)
    pq.write_table(table, segments)
    page.get_by_role("button", name="Look again").click()
    expect(page.get_by_text("One person in 0.4 s of video")).to_be_visible()


def test_a_video_whose_segments_do_not_say_their_version_is_shown(viewer, page, make_video, astronaut, tmp_path):
    video_id = analysed(viewer, make_video(tmp_path / "earlier.mp4", frame_count=6, image=astronaut))
    segments = viewer.folder / "results" / "segments" / f"{video_id}.parquet"
    pq.write_table(pq.read_table(segments).drop_columns(["model_version"]), segments)
    page.goto(f"{viewer.url}/video?video={video_id}")
    expect(page.get_by_text("One person in 0.6 s of video")).to_be_visible()
    expect(page.get_by_role("button", name=re.compile("^#0 "))).to_have_count(1)


def test_an_annotated_video_that_is_gone_or_damaged_takes_only_the_player_away(
    viewer, page, make_video, astronaut, tmp_path
):
    video_id = analysed(viewer, make_video(tmp_path / "gone.mp4", frame_count=5, image=astronaut))
    (annotated,) = (viewer.folder / "results" / "annotated").glob("gone-*.mp4")
    content = annotated.read_bytes()
    annotated.write_bytes(content[:200])
    for said in ("The annotated copy of this video is damaged.", "There is no annotated copy of this video"):
        page.goto(f"{viewer.url}/video?video={video_id}")
        expect(page.get_by_text(said)).to_be_visible()
        expect(page.get_by_role("button", name=re.compile("^#0 "))).to_have_count(1)
        expect(page.get_by_role("link", name="Rows as CSV")).to_be_visible()
        annotated.unlink(missing_ok=True)
    annotated.write_bytes(content)
    open_video(page, viewer, video_id)
    expect(page.get_by_text("Frame 0 (the last is 4)")).to_be_visible()
    annotated.unlink()
    page.get_by_role("slider").press("End")
    expect(page.get_by_text("This frame cannot be shown")).to_be_visible()
    expect(page.get_by_text("#0 looks")).to_be_visible()
    expect(page.get_by_test_id("stException")).to_have_count(0)


@pytest.mark.parametrize("video_id", ["../../../etc/passwd", "..%2f..", "*", "0123456789abcdef", "' or 1=1 --"])
def test_an_address_reads_nothing_but_results(viewer, clip, page, video_id):
    page.goto(f"{viewer.url}/video?video={video_id}")
    expect(page.get_by_role("heading", name="There is no such video")).to_be_visible()
    with pytest.raises(urllib.error.HTTPError, match=r"40[04]"):
        urllib.request.urlopen(
            f"{viewer.url}/results/{urllib.request.quote(video_id, safe='')}/annotated.mp4", timeout=60
        )


def test_a_row_that_names_a_file_outside_of_the_results_gives_nothing(viewer, clip):
    results = open_results(viewer.folder / "results")
    (viewer.folder / "results" / "annotated" / "out.mp4").symlink_to("/etc/hostname")
    assert local_file(results, f"annotated/{next((viewer.folder / 'results' / 'annotated').glob('happy*')).name}")
    for named in ("/etc/hostname", "../view.log", "annotated/../../view.log", "annotated/out.mp4", "", None):
        assert local_file(results, named) is None


@pytest.mark.parametrize(
    ("name", "kind", "shown"),
    [
        *[("x.html", "application/octet-stream", "attachment"), ("x.svg", "application/octet-stream", "attachment")],
        ("x.mp4", "video/mp4", "inline"),
    ],
)
def test_what_a_row_from_a_stranger_names_is_no_page_of_this_address(viewer, name, kind, shown):
    results = open_results(viewer.folder / "results")
    (results.root / "annotated" / name).write_text("<script>alert(1)</script>")
    added = add_video(results, "/x.mp4", video_id=f"{hash(name) % 16**16:016x}", annotated_path=f"annotated/{name}")
    try:
        with urllib.request.urlopen(f"{viewer.url}/results/{added.video_id}/annotated.mp4", timeout=60) as answer:
            assert answer.headers["Content-Type"] == kind
            assert answer.headers["Content-Disposition"].startswith(shown)
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
    finally:
        for table in ("videos", "faces", "segments"):
            results.rows(table, added.video_id).unlink()


@pytest.mark.fault("a stranger's results name a picture elsewhere as a video's timeline", "none of 5 gets into Prefect")
def test_no_picture_from_outside_of_the_results_gets_into_prefect(tmp_path):
    results, outside = open_results(tmp_path / "results"), tmp_path / "private.png"
    timelines = results.root / "timelines"
    timelines.mkdir()
    for path in (outside, timelines / "a.png"):
        cv2.imwrite(str(path), np.zeros((10, 10, 3), np.uint8))
    (timelines / "out.png").symlink_to(outside)
    (timelines / "folder").symlink_to(tmp_path)
    (timelines / "empty.png").touch()
    beside = ["timelines/out.png", "timelines/folder/private.png", "timelines/../../private.png", "../private.png"]
    for named in ("timelines/a.png", *beside, str(outside), "timelines/empty.png"):
        page = describe_video(add_video(results, "/a.mp4", timeline_path=named), results, has_picture=True)
        assert ("base64" in page) == (named == "timelines/a.png"), named


def private_rows(place: Path) -> Path:
    """Somebody's own table, which is no part of any results."""
    pq.write_table(pa.table({"name": ["Ada"], "salary": [4321]}), place / "private.parquet")
    return place / "private.parquet"


@pytest.mark.parametrize("name", ["faces.csv", "faces.parquet"])
def test_a_table_that_is_a_link_out_of_the_results_gives_no_rows_away(viewer, tmp_path, name):
    results = open_results(viewer.folder / "results")
    added = add_video(results, "/x.mp4")
    faces = results.rows("faces", added.video_id)
    try:
        with urllib.request.urlopen(f"{viewer.url}/results/{added.video_id}/{name}", timeout=60) as answer:
            assert answer.read()
        faces.unlink()
        faces.symlink_to(private_rows(tmp_path))
        with pytest.raises(urllib.error.HTTPError, match="503"):
            urllib.request.urlopen(f"{viewer.url}/results/{added.video_id}/{name}", timeout=60)
    finally:
        for table in TABLES:
            results.rows(table, added.video_id).unlink()


@pytest.mark.parametrize("table", list(TABLES))
def test_no_table_is_read_by_a_link_merged_or_not(tmp_path, table):
    results = open_results(tmp_path / "results")
    add_video(results, "/w.mp4")  # One alone is not merged.
    added = add_video(results, "/x.mp4")
    for is_merged in (False, True):
        if is_merged:
            assert compact(results, older_than_days=0)
        path = list_big(results.table(table))[0] if is_merged else results.rows(table, added.video_id)
        elsewhere = path.rename(tmp_path / path.name)
        path.symlink_to(elsewhere)
        with pytest.raises(SourceError, match=f"{path.name}: this is a link"):
            find_video(results, added.video_id) if table == "videos" else find_rows(results, table, added.video_id)
        elsewhere.replace(path)
    results.table(table).rename(tmp_path / "moved")
    results.table(table).symlink_to(tmp_path / "moved")
    assert find_rows(results, table, added.video_id) is not None  # The folder may lie elsewhere.


def test_of_a_video_s_faces_only_the_table_s_own_columns_are_given_out(tmp_path):
    results = open_results(tmp_path / "results")
    path = results.rows("faces", add_video(results, "/x.mp4").video_id)
    rows = pq.read_table(path)
    pq.write_table(rows.append_column("salary", pa.nulls(len(rows), pa.int32())), path)
    found = find_rows(results, "faces", path.stem)
    assert found is not None
    assert found.column_names == TABLES["faces"].names


def test_a_part_of_a_video_can_be_asked_for(viewer, clip):
    request = urllib.request.Request(f"{viewer.url}/results/{clip}/annotated.mp4", headers={"Range": "bytes=4-7"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert (answer.status, answer.read()) == (206, b"ftyp")


def test_the_page_asks_nobody_else_and_an_upload_wants_its_token(viewer, clip, page):
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    for path in ("", f"video?video={clip}"):
        page.goto(f"{viewer.url}/{path}")
        expect(page.get_by_role("heading", level=1)).to_be_visible()
    own = (viewer.url, viewer.url.replace("http", "ws"), "data:", "blob:")
    assert [url for url in asked if not url.startswith(own)] == []
    request = urllib.request.Request(f"{viewer.url}/_stcore/upload_file/a/b", b"x", method="PUT")
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(request, timeout=60)


def test_more_than_the_limit_is_refused_while_it_comes_in(tmp_path, page):
    """Also where somebody does not use the page's own button, which looks at the size first."""
    (tmp_path / "view.toml").write_text("max_upload_mb = 1\n")
    with serve_viewer(tmp_path, "--config", "view.toml") as viewer:
        page.goto(viewer.url)
        expect(page.get_by_text("1MB per file")).to_be_visible()
        with page.expect_request(lambda request: "upload_file" in request.url) as asked:
            page.locator("input[type=file]").set_input_files(
                {"name": "a.mp4", "mimeType": "video/mp4", "buffer": b"no video"}
            )
        expect(page.get_by_role("alert")).to_be_visible()
        sent = {
            "method": "PUT",
            "multipart": {"file": {"name": "a.mp4", "mimeType": "video/mp4", "buffer": b"0" * 3_000_000}},
        }
        headers = {name: value for name, value in asked.value.headers.items() if name.startswith("x-")}
        assert page.request.fetch(asked.value.url, headers=headers, **sent).status == 413
        assert list((tmp_path / "inbox").iterdir()) == []


def test_others_are_let_in_where_that_is_asked_for(tmp_path):
    with serve_viewer(tmp_path, "--host", "0.0.0.0") as viewer:
        assert "it asks for no password" in viewer.log.read_text()
        assert listening_on(viewer) == ["00000000"]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *[
            ("localhost:8501", 200),
            ("LOCALHOST", 200),
            ("[::1]:8501", 200),
            ("127.0.0.1", 200),
            ("192.168.1.7:80", 200),
        ],
        *[("rebound.example", 403), ("localhost.rebound.example", 403), ("127.0.0.1.rebound.example", 403), ("", 403)],
    ],
)
def test_the_page_answers_to_no_name_that_anybody_can_make_lead_to_it(viewer, host, status):
    assert status_of(viewer, "/", host=host) == status


def test_a_name_that_the_settings_give_is_answered_to(tmp_path):
    (tmp_path / "view.toml").write_text('page_names = ["videos.example.org"]\n')
    with serve_viewer(tmp_path, "--config", "view.toml") as viewer:
        assert status_of(viewer, "/", host="videos.example.org") == 200
        assert status_of(viewer, "/", host="other.example.org") == 403


@pytest.mark.parametrize(
    ("named", "status"),
    [
        ({"host": "127.0.0.1"}, 101),
        ({"host": "localhost", "origin": "http://localhost"}, 101),
        ({"host": "localhost", "origin": "http://localhost:3000"}, 403),
        ({"host": "localhost", "origin": "http://other.example"}, 403),
        ({"host": "localhost", "origin": "null"}, 403),
        ({"host": "rebound.example", "origin": "http://rebound.example"}, 403),
    ],
)
def test_no_other_page_opens_a_websocket_to_this_one(viewer, named, status):
    key = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    key["Sec-WebSocket-Key"] = "dGhlIHNhbXBsZSBub25jZQ=="
    assert status_of(viewer, "/_stcore/stream", **key, **named) == status


@pytest.mark.parametrize("path", ["", "video"])
def test_nothing_is_wider_than_a_phone(viewer, clip, browser, path):
    with opened(browser, width=390, height=844) as page:
        page.goto(f"{viewer.url}/{path}" + (f"?video={clip}" if path else ""))
        expect(page.get_by_role("heading", level=1)).to_be_visible()
        page.wait_for_timeout(1500)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.get_by_test_id("stMain").evaluate("main => main.scrollWidth - main.clientWidth") <= 0


@pytest.mark.parametrize("path", ["", "video"])
def test_every_text_stands_out_from_its_ground(viewer, clip, page, path):
    if path:
        open_video(page, viewer, clip)
        page.get_by_text("About this result").click()
    else:
        page.goto(viewer.url)
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    page.wait_for_timeout(1000)
    assert faint_texts(page) == []


def test_it_listens_on_this_machine_alone(viewer):
    assert listening_on(viewer) == ["0100007F"]


def test_without_a_prefect_server_there_is_no_link_to_a_run(clip, monkeypatch):
    """With one there is, see test_up.py."""
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    assert run_url(Results(Path("results")), clip) is None
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    assert run_url(Results(Path("results")), clip) is None


def test_a_bucket_of_results_is_shown_like_a_folder(s3_server, bucket, page, shared, tmp_path):
    done = subprocess.run(
        [FERFLOW, "analyze", shared / "videos" / "torchcodec_h265_video.mp4", "--results", str(bucket / "results")],
        **{"cwd": tmp_path, "capture_output": True, "text": True, "timeout": 300},
    )
    assert done.returncode == 0, done.stderr
    options = ("--results", str(bucket / "results"))
    with serve_viewer(tmp_path, *options, FERFLOW_CACHE=str(tmp_path / "cache")) as viewer:
        page.goto(f"{viewer.url}/videos")
        page.get_by_role("link", name="torchcodec_h265_video.mp4").click()
        expect(page.get_by_text("Frame 0 (the last is 9)")).to_be_visible()
        eventually(lambda: page.locator("video").evaluate("video => video.readyState") >= 2, "a frame of the video")
        with page.expect_download() as download:
            page.get_by_role("link", name="Rows as Parquet").click()
        download.value.save_as(tmp_path / "taken.parquet")
    # On a small picture there may be faces or not; the table is one.
    assert "emotion" in pq.read_schema(tmp_path / "taken.parquet").names


@pytest.fixture
def slow_bucket(s3_server, bucket, make_video, astronaut, tmp_path):
    """A page of a bucket with one video, whose annotated copy is held back until a test lets it come; its faults too.

    Gives the page, the video's id, what lets it come, and what becomes of the requests from then on.
    """
    results = open_results(bucket / "results")
    clip = make_video(tmp_path / "made" / "clip.mp4", frame_count=20, image=astronaut)
    nobody = {"face_count": 0, "track_count": 0, "dominant_emotion": None, "emotion_shares": None}
    added = add_video(results, "/clip.mp4", annotated_path="annotated/clip.mp4", **nobody)
    segments = results.rows("segments", added.video_id)
    write_segments(segments, [], video_id=added.video_id, model_version="m", parts=results.parts)
    bucket.joinpath("results/annotated/clip.mp4").write_bytes(clip.read_bytes())
    may_come, faults = threading.Event(), [""]

    def hold_back(request: str) -> None:
        if request.startswith("GET") and "/annotated/" in request:
            may_come.wait(120)

    def turns() -> Iterator[str]:
        while True:
            yield faults[0]

    options = ("--results", str(bucket / "results"))
    with in_trouble(s3_server, turns(), before=hold_back) as (url, _):
        environment = {"AWS_ENDPOINT_URL": url, "FERFLOW_CACHE": str(tmp_path / "cache")}
        with serve_viewer(tmp_path, *options, **environment) as viewer:
            try:
                yield viewer, added.video_id, may_come, faults
            finally:
                may_come.set()


@pytest.mark.parametrize("width", [390, 1440])
def test_everything_else_is_shown_while_the_annotated_video_is_on_its_way(slow_bucket, browser, width):
    viewer, video_id, may_come, _ = slow_bucket
    with opened(browser, width=width) as page:
        page.goto(f"{viewer.url}/video?video={video_id}")
        expect(page.get_by_role("status").get_by_text("The annotated video is on its way")).to_be_visible()
        expect(page.get_by_text("No face was found in 10 s of video.")).to_be_visible()
        expect(page.get_by_text("Each frame can be looked at as soon as")).to_be_visible()
        with page.expect_download():
            page.get_by_role("link", name="Rows as CSV").click()
        page.get_by_text("About this result").click()
        expect(page.get_by_text("/clip.mp4")).to_be_visible()
        assert faint_texts(page) == []
        assert page.get_by_test_id("stMain").evaluate("main => main.scrollWidth - main.clientWidth") <= 0
        may_come.set()
        expect(page.get_by_text("Frame 0 (the last is 19)")).to_be_visible()
        eventually(lambda: page.locator("video").evaluate("video => video.readyState") >= 2, "a frame of the video")
        expect(page.get_by_text("is on its way")).to_have_count(0)


def test_an_annotated_video_that_does_not_arrive_is_told_and_asked_for_again(slow_bucket, page):
    viewer, video_id, may_come, faults = slow_bucket
    page.goto(f"{viewer.url}/video?video={video_id}")
    expect(page.get_by_text("is on its way")).to_be_visible()
    faults[0] = "InternalError"
    may_come.set()
    expect(page.get_by_role("alert")).to_contain_text("The annotated video cannot be read.", timeout=120_000)
    expect(page.get_by_role("link", name="Rows as CSV")).to_be_visible()
    faults[0] = ""
    page.get_by_role("button", name="Look again").click()
    expect(page.get_by_text("Frame 0 (the last is 19)")).to_be_visible()
