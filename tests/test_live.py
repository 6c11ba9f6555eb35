"""What a camera sees: the thread that looks at the newest picture, and the page with a camera in a real browser."""

import contextlib
import csv
import io
import random
import re
import threading
import time
from fractions import Fraction

import numpy as np
import pytest
from browser import faint_texts, opened, serve_viewer, started_browser
from playwright.sync_api import expect
from prefect_server import eventually

from ferflow.emotions import EMOTIONS
from ferflow.errors import ModelError
from ferflow.faces import Framing
from ferflow.overlay import EMOTION_COLORS_RGB
from ferflow.records import Box, Face
from viewer.live import LiveFaces

HAPPY = EMOTIONS.index("happy")


class BrightFace:
    """A FaceDetector: a face in the middle of each picture that is not black; it may take its time."""

    def __init__(self):
        self.seen = []
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def detect(self, image_rgb):
        self.seen.append(int(image_rgb[0, 0, 0]))
        self.may_go_on.wait()
        height, width = image_rgb.shape[:2]
        box = Box(width / 4, height / 4, width * 3 / 4, height * 3 / 4)
        return [Face(box, (width * 0.4, height * 0.4), (width * 0.6, height * 0.4), 0.9)] if image_rgb.any() else []


class AlwaysHappy:
    """An EmotionClassifier."""

    version, crop_size_px = "happy", 48
    framing = Framing(side_per_box=1.0, down_per_box=0.0, is_levelled=False)

    def classify(self, crops_gray):
        return np.tile(np.eye(len(EMOTIONS), dtype=np.float32)[HAPPY], (len(crops_gray), 1))


@pytest.fixture
def detector():
    return BrightFace()


@pytest.fixture
def live(detector):
    live = LiveFaces(lambda: contextlib.nullcontext((detector, AlwaysHappy())))
    yield live
    detector.may_go_on.set()
    live.close()


def picture(value=100, width=160, height=120):
    return np.full((height, width, 3), value, np.uint8)


def is_labelled(image_rgb):
    return bool((image_rgb == EMOTION_COLORS_RGB[HAPPY]).all(axis=-1).any())


def look(live, image_rgb):
    live.annotate(image_rgb)
    return image_rgb


def test_what_was_seen_is_drawn_on_the_next_picture(live):
    assert not is_labelled(look(live, picture()))
    eventually(lambda: live.lately(), "the first sight")
    assert is_labelled(look(live, picture()))


def test_a_slow_detector_holds_nothing_up_and_gets_the_newest_picture(live, detector):
    detector.may_go_on.clear()
    live.annotate(picture(1))
    eventually(lambda: detector.seen == [1], "the first picture")
    started = time.perf_counter()
    for value in range(2, 100):
        live.annotate(picture(value))
    assert time.perf_counter() - started < 2.0
    detector.may_go_on.set()
    eventually(lambda: len(detector.seen) == 2, "the second look")
    assert detector.seen == [1, 99]


def test_a_smaller_picture_shows_the_same_person_in_the_same_place(live):
    live.annotate(picture(width=640, height=480))
    eventually(lambda: live.lately(), "the first sight")
    small = look(live, picture(width=160, height=120))
    eventually(lambda: len(live.lately()) == 2, "the second sight")
    first, second = live.lately()
    assert first.track_ids.tolist() == second.track_ids.tolist() == [0]
    assert first.boxes_xyxy.tolist() == second.boxes_xyxy.tolist() == [[0.25, 0.25, 0.75, 0.75]]
    assert (small[40, 40] == EMOTION_COLORS_RGB[HAPPY]).all()


def test_nothing_is_kept_unless_asked_for(live):
    live.annotate(picture())
    eventually(lambda: live.lately(), "the first sight")
    assert live.kept_faces == 0
    live.is_kept = True
    live.annotate(picture())
    eventually(lambda: live.kept_faces == 1, "the second sight")
    (row,) = csv.DictReader(io.StringIO(live.csv()))
    assert (row["track_id"], row["emotion"], row["happy"], row["x_min"]) == ("0", "happy", "1.0000", "0.2500")
    live.forget_kept()
    assert live.csv().count("\n") == 1


def test_a_thread_without_pictures_ends_and_the_next_picture_begins_another(detector):
    now = [0.0]
    live = LiveFaces(lambda: contextlib.nullcontext((detector, AlwaysHappy())), clock=lambda: now[0])
    live.annotate(picture())
    eventually(lambda: live.lately(), "the first sight")
    live.close()
    eventually(lambda: "live-faces" not in [thread.name for thread in threading.enumerate()], "the end of the thread")
    now[0] = 30.0
    live.annotate(picture())
    eventually(lambda: len(live.lately()) == 2, "the second sight")
    assert [sight.track_ids.tolist() for sight in live.lately()] == [[0], [1]], "somebody else, for all one knows"
    live.close()


def test_a_camera_that_falls_silent_is_told_from_one_that_was_switched_off(detector):
    now = [0.0]
    live = LiveFaces(lambda: contextlib.nullcontext((detector, AlwaysHappy())), clock=lambda: now[0])
    assert not live.is_cut_off
    live.annotate(picture())
    now[0] = 4.0
    assert not live.is_cut_off
    now[0] = 6.0
    assert live.is_cut_off
    live.close()
    assert not live.is_cut_off


def test_what_was_seen_is_forgotten_after_a_minute(detector):
    now = [0.0]
    live = LiveFaces(lambda: contextlib.nullcontext((detector, AlwaysHappy())), clock=lambda: now[0])
    live.annotate(picture())
    eventually(lambda: live.lately(), "the first sight")
    now[0] = 61.0
    assert live.lately() == []
    assert not is_labelled(look(live, picture()))
    live.close()


UNFORESEEN = "an unexpected error (ZeroDivisionError), of which this page's log tells more; try again."


@pytest.mark.parametrize("is_loaded", [False, True])
@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ModelError("models/x: it is missing; install it again."), "models/x: it is missing; install it again."),
        (ZeroDivisionError("by nothing"), UNFORESEEN),
    ],
)
def test_a_model_that_cannot_be_used_is_told_and_the_picture_goes_on(
    detector, monkeypatch, caplog, is_loaded, error, sentence
):
    def broken(*_):
        raise error

    monkeypatch.setattr(detector, "detect", broken)
    live = LiveFaces((lambda: contextlib.nullcontext((detector, AlwaysHappy()))) if is_loaded else broken)
    live.annotate(picture())
    eventually(lambda: live.error is not None, "the error")
    assert live.error == sentence
    assert str(error) in caplog.text
    assert not is_labelled(look(live, picture()))
    monkeypatch.undo()
    live.try_again()
    if is_loaded:
        eventually(lambda: live.annotate(picture()) or live.lately(), "the first sight")
    live.close()


@pytest.fixture(scope="module")
def camera(tmp_path_factory, shared):
    """Two seconds of a real face, over and over, as Chromium's camera takes them."""
    import av

    path = tmp_path_factory.mktemp("camera") / "face.mjpeg"
    with av.open(str(shared / "videos" / "justinshenk_fer_woman2.mp4")) as clip, av.open(str(path), "w") as written:
        stream = written.add_stream("mjpeg", rate=25, options={"qmin": "2", "qmax": "4"})
        stream.width, stream.height, stream.pix_fmt = 640, 360, "yuvj420p"
        for index, frame in enumerate(clip.decode(video=0)):
            if index == 50:
                break
            shown = frame.reformat(width=640, height=360, format="yuvj420p")
            shown.pts, shown.time_base = index, Fraction(1, 25)
            written.mux(stream.encode(shown))
        written.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def viewer(tmp_path_factory):
    with serve_viewer(tmp_path_factory.mktemp("live")) as started:
        yield started


LABEL_PIXELS = """(video, colors) => {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
    if (!canvas.width) return 0;
    const context = canvas.getContext("2d");
    context.drawImage(video, 0, 0);
    const pixels = context.getImageData(0, 0, canvas.width, canvas.height).data;
    let count = 0;
    for (let at = 0; at < pixels.length; at += 4)
        if (colors.some(color => [0, 1, 2].every(n => Math.abs(color[n] - pixels[at + n]) < 24))) count++;
    return count / canvas.width / canvas.height;
}"""
# How much of the picture has one of some colours.


KEEP_CONNECTIONS = """
    window.connections = []
    const Known = window.RTCPeerConnection
    window.RTCPeerConnection = function(...given) {
        const connection = new Known(...given)
        window.connections.push(connection)
        return connection
    }
    window.RTCPeerConnection.prototype = Known.prototype
"""


@contextlib.contextmanager
def browser_with(camera):
    options = [
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-video-capture={camera}",
    ]
    with started_browser(*options) as browser:
        yield browser


def start_camera(page, viewer):
    """Open the page, and start the camera; gives it with a face drawn on its picture."""
    page.goto(f"{viewer.url}/live")
    expect(page.get_by_text("The camera is off.")).to_be_visible()
    component = page.frame_locator("iframe[title*=webrtc]")
    video = component.locator("video")
    start = component.get_by_role("button", name="Start the camera")

    def is_drawn():
        # The browser gives up a connection that is silent for five seconds, as on a machine with too much to do.
        if start.is_visible():
            start.click()
        return video.is_visible() and video.evaluate(LABEL_PIXELS, [EMOTION_COLORS_RGB[HAPPY]]) > 0.005

    eventually(is_drawn, "a label in the picture that came back")
    return component, start


def test_the_page_draws_boxes_and_emotions_on_the_picture_of_the_camera(viewer, camera):
    asked = []
    with browser_with(camera) as browser, opened(browser) as page:
        page.on("request", lambda request: asked.append(request.url))
        page.add_init_script(KEEP_CONNECTIONS)
        component, start = start_camera(page, viewer)
        # In words too, and on the timeline.
        expect(page.get_by_role("heading", name=re.compile("Person [0-9]+")).first).to_be_visible()
        expect(page.locator(".ff-lanes .ff-strip").first).to_have_attribute("alt", re.compile("happy"))
        for frame in page.frames:
            frame.evaluate("window.connections.forEach(connection => connection.close())")
        expect(
            page.get_by_text("No picture comes any more.").or_(page.get_by_text("The camera is off."))
        ).to_be_visible()
        if not start.is_visible():
            component.get_by_role("button", name="Stop").click()
        expect(page.get_by_text("The camera is off.")).to_be_visible()
    elsewhere = [url for url in asked if not url.startswith((viewer.url, "data:", "blob:"))]
    assert elsewhere == []


def taken_away(page):
    """The rows of the table of what was kept, two seconds from now: its address is another one after each run."""
    page.wait_for_timeout(2000)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download CSV").click()
    assert download.value.suggested_filename == "live.csv"
    return list(csv.DictReader(download.value.path().read_text().splitlines()))


def test_what_is_seen_is_kept_from_when_that_is_asked_for_until_it_is_to_be_forgotten(tmp_path, camera):
    (tmp_path / "tmp").mkdir()
    with (
        serve_viewer(tmp_path, TMPDIR=str(tmp_path / "tmp")) as viewer,
        browser_with(camera) as browser,
        opened(browser) as page,
    ):
        before = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
        start_camera(page, viewer)
        download = page.get_by_role("button", name="Download CSV")
        expect(page.get_by_role("heading", name=re.compile("Person [0-9]+")).first).to_be_visible()
        seen_for = 3.0
        page.wait_for_timeout(1000 * seen_for)
        expect(download).to_be_disabled()
        keep = page.get_by_text("Keep what is seen")
        keep.click()
        rows = taken_away(page)
        assert min(float(row["pts_seconds"]) for row in rows) >= seen_for, "nothing from before it was asked for"
        for row in rows:
            shares = {name: float(row[name]) for name in EMOTIONS}
            assert row["emotion"] == max(shares, key=shares.__getitem__)
            assert sum(shares.values()) == pytest.approx(1, abs=0.001)
            assert 0 <= float(row["x_min"]) < float(row["x_max"]) <= 1
        assert "happy" in {row["emotion"] for row in rows}
        last = float(rows[-1]["pts_seconds"])
        page.get_by_role("button", name="Forget it").click()
        assert float(taken_away(page)[0]["pts_seconds"]) > last
        keep.click()
        kept = taken_away(page)
        assert taken_away(page) == kept != [], "nothing more is kept"
        page.get_by_role("button", name="Forget it").click()
        expect(download).to_be_disabled()
        after = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert after == before, "no file is written"


def test_an_error_that_nobody_foresaw_is_one_sentence_and_in_the_log(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['models.face_detector'] = None\n")
    with (
        serve_viewer(tmp_path, PYTHONPATH=str(tmp_path)) as viewer,
        started_browser() as browser,
        opened(browser) as page,
    ):
        page.goto(f"{viewer.url}/live")
        expect(page.get_by_role("alert")).to_contain_text(
            "Nothing can be seen: an unexpected error (ModuleNotFoundError), of which this page's log tells more; try "
            "again."
        )
        expect(page.get_by_test_id("stException")).to_have_count(0)
        expect(page.get_by_role("button", name="Try again")).to_be_visible()
        assert "import of models.face_detector halted" in viewer.log.read_text()


TELL_MANY_ADDRESSES = """
    const Known = window.RTCPeerConnection
    window.RTCPeerConnection = function(...given) {
        const connection = new Known(...given)
        const tell = candidate => connection.dispatchEvent(new RTCPeerConnectionIceEvent("icecandidate", {candidate}))
        connection.addEventListener("icecandidate", ({candidate}) => {
            for (let n = 1; n <= 30; n++) setTimeout(() => tell(candidate), 100 * n)
            setTimeout(() => document.body.classList.add("told"), 100 * 40)
        }, {once: true})
        return connection
    }
    window.RTCPeerConnection.prototype = Known.prototype
"""
# Each makes the page run.

SEND_SLOWLY = """
import asyncio
known = asyncio.sleep
asyncio.sleep = lambda delay, *given: known(0.15 if delay == 0.01 else delay, *given)
"""
# Streamlit counts a run when it tells the browser of it, which it does every 0.01 s at most.


def test_what_was_kept_can_be_forgotten_while_the_other_parts_of_the_page_run(tmp_path, camera):
    """Seen to fail when the buttons went away instead: the other parts' next run had begun before that was told."""
    (tmp_path / "sitecustomize.py").write_text(SEND_SLOWLY)
    with (
        serve_viewer(tmp_path, PYTHONPATH=str(tmp_path)) as viewer,
        browser_with(camera) as browser,
        opened(browser) as page,
    ):
        start_camera(page, viewer)
        expect(page.get_by_role("heading", name=re.compile("Person [0-9]+")).first).to_be_visible()
        keep, switch = page.get_by_text("Keep what is seen"), page.get_by_role("switch", name="Keep what is seen")
        download = page.get_by_role("button", name="Download CSV")
        forget = page.get_by_role("button", name="Forget it")
        for _ in range(12):
            keep.click()
            expect(switch).to_be_checked()
            expect(download).to_be_enabled()
            # Where no picture was looked at meanwhile there is nothing to forget.
            page.wait_for_timeout(1500)
            keep.click()
            expect(switch).not_to_be_checked()
            page.wait_for_timeout(500)
            forget.click()
            expect(download).to_be_disabled()
            page.wait_for_timeout(random.uniform(0, 1000))


def test_one_press_starts_the_camera_of_a_browser_with_many_addresses(tmp_path, camera):
    """Seen to fail before runs waited for each other, in half of the starts."""
    (tmp_path / "sitecustomize.py").write_text(SEND_SLOWLY)
    with serve_viewer(tmp_path, PYTHONPATH=str(tmp_path)) as viewer, browser_with(camera) as browser:
        for _ in range(5):
            with opened(browser) as page:
                page.add_init_script(TELL_MANY_ADDRESSES)
                page.goto(f"{viewer.url}/live")
                component = page.frame_locator("iframe[title*=webrtc]")
                component.get_by_role("button", name="Start the camera").click()
                expect(component.locator("body.told")).to_be_attached()
                expect(page.get_by_role("heading", name=re.compile("Person [0-9]+")).first).to_be_visible()


def test_on_a_phone_it_fits_and_can_be_read(viewer):
    with started_browser() as browser, opened(browser, width=390, height=844) as page:
        page.goto(f"{viewer.url}/live")
        expect(page.get_by_text("The camera is off.")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.get_by_test_id("stMain").evaluate("main => main.scrollWidth - main.clientWidth") <= 0
        assert faint_texts(page) == []
