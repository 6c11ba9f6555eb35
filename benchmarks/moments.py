"""a clip -> how long the page of a video takes over an hour of it, and that of all videos over 10,000, in a browser too

python -m benchmarks.moments VIDEO [--minutes 60] [--keep FOLDER]

The clip's pictures are encoded as an annotated video is, repeated, and given one face a frame. Aims: a frame in well
under half a second wherever it lies, and no memory that grows with the size of the file. In Chromium it is the time
from a key on the slider to the new picture.
"""

import argparse
import contextlib
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pipeline import repeat
from benchmarks.viewer import fill
from ferflow.config import load_settings
from ferflow.frames import VideoReader, read_frame_times, rewrite_video
from ferflow.merged_rows import find_faces, find_rows, find_video
from ferflow.records import Analysis, Box, Face, FaceRow, VideoInfo
from ferflow.rows import write_faces
from ferflow.sources import open_results
from ferflow.stages import summarize_video
from ferflow.storage import Results
from viewer.frames import faces_at, frame_jpeg

_VIDEO_ID = "0123456789abcdef"
_LOOKS = 30
_VIDEOS, _PORT = 10_000, 8699
_STEP = """() => { window.step = new Promise(done => addEventListener("keydown", () => {
    const picture = () => document.querySelector("[data-testid=stImage] img")
    const began = performance.now(), before = picture().src
    const look = () => {
        const now = picture()
        if (now && now.src !== before && now.complete && now.naturalWidth) done(performance.now() - began)
        else if (performance.now() - began < 20000) requestAnimationFrame(look)
        else done(NaN)
    }
    look()
}, {once: true, capture: true})) }"""


def _fill(clip: Path, results: Results, seconds: float) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        drawn = Path(scratch) / "drawn.mp4"
        rewrite_video(clip, drawn, lambda frame: None)
        annotated = results.annotated("hour.mp4", _VIDEO_ID)
        annotated.parent.mkdir(parents=True, exist_ok=True)
        repeat(drawn, annotated, seconds=seconds)
    times = read_frame_times(annotated)
    steps = np.diff(times, append=times[-1] + times[1])
    with VideoReader(annotated) as reader:
        info = VideoInfo(
            width=reader.width,
            height=reader.height,
            frame_count=len(times),
            duration_seconds=float(times[-1] + steps[-1]),
            fps=float(reader.rate),
            has_audio=False,
            warning=None,
        )
    scores = np.random.default_rng(0).dirichlet([0.3] * 7, len(times) // 50 + 1)
    face = Face(Box(10, 10, 90, 90), (35, 40), (65, 40), 0.9)

    def rows() -> Iterator[FaceRow]:
        for index, (at, step) in enumerate(zip(times.tolist(), steps.tolist(), strict=True)):
            yield FaceRow(index, at, step, 0, face, tuple(scores[index // 50].tolist()))

    settings = load_settings(None)
    analysis = Analysis(_VIDEO_ID, "hour.mp4", "none", settings.settings_hash, datetime.now(UTC), info)
    path = results.rows("faces", _VIDEO_ID)
    write_faces(path, rows(), lambda: analysis, parts=results.parts)
    summarize_video(path, annotated, results, settings=settings)


def _say(what: str, began: float) -> None:
    print(f"{what:44} {1000 * (time.perf_counter() - began):8.0f} ms")


@contextlib.contextmanager
def _page(results: Path) -> Iterator[Any]:
    """The page of a results folder, to be opened in Debian's Chromium."""
    from playwright.sync_api import sync_playwright

    command = [Path(sys.executable).with_name("ferflow"), "view", "--results", results, "--port", str(_PORT)]
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen([*command, "--inbox", folder], stdout=subprocess.DEVNULL) as served,
        sync_playwright() as playwright,
    ):
        try:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            for _ in range(120):
                with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{_PORT}/_stcore/health"):
                    break
                time.sleep(0.5)
            yield browser.new_page(base_url=f"http://127.0.0.1:{_PORT}")
            browser.close()
        finally:
            served.terminate()


def _slide(results: Path) -> None:
    with _page(results) as page:
        began = time.perf_counter()
        page.goto(f"/video?video={_VIDEO_ID}")
        page.locator("[data-testid=stImage] img").wait_for()
        _say("in a browser: opening, with a frame", began)
        page.wait_for_timeout(2000)
        page.get_by_role("slider").focus()
        taken = []
        # A tenth of the hour on, nine times, with single frames between.
        for key in ("PageUp", "ArrowRight", "ArrowRight") * 9:
            page.evaluate(_STEP)
            page.keyboard.press(key)
            taken.append(page.evaluate("step"))
            page.wait_for_timeout(300)
        print(f"in a browser: next place of the slider: median {np.median(taken):8.0f} ms")
        print(f"{'':42} longest {max(taken):4.0f} ms")


def _list(results: Path) -> None:
    with _page(results) as page:
        for name in ("first", "again"):
            began = time.perf_counter()
            page.goto("/videos")
            page.locator("table.ff-videos tbody tr").first.wait_for()
            _say(f"in a browser: {_VIDEOS:,} videos, {name}", began)
        page.get_by_label("Name").fill("0123")
        began = time.perf_counter()
        page.get_by_label("Name").press("Enter")
        filtered = "document.querySelector('table.ff-videos tbody tr')?.innerText.includes('0123')"
        page.wait_for_function(filtered, polling="raf")
        _say("in a browser: those with a name", began)


def main() -> None:
    """Make the results, and measure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("video", type=Path)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="make the results here, or use those that are here")
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = args.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        results = open_results(folder)
        if find_video(results, _VIDEO_ID) is None:
            _fill(args.video, results, 60 * args.minutes)
        summary = find_video(results, _VIDEO_ID)
        assert summary is not None
        assert summary.info is not None
        annotated = results.root / str(summary.annotated_path)
        info = summary.info
        print(f"{info.width} x {info.height}, {info.frame_count:,} frames, {annotated.stat().st_size / 1e6:,.0f} MB")
        began = time.perf_counter()
        known = find_faces(results, _VIDEO_ID)
        find_rows(results, "segments", _VIDEO_ID)
        _say(f"opening: rows ({summary.face_count:,})", began)
        began = time.perf_counter()
        times = read_frame_times(annotated)
        _say("opening: when each frame appears", began)
        assert known is not None
        taken = []
        for index in np.random.default_rng(1).integers(len(times), size=_LOOKS).tolist():
            began = time.perf_counter()
            assert frame_jpeg(annotated, float(times[index])) is not None
            faces_at(known[0], known[0].probabilities.argmax(axis=1), float(times[index]))
            taken.append(time.perf_counter() - began)
        print(f"any frame and its faces, {_LOOKS} of them: median    {1000 * np.median(taken):8.0f} ms")
        print(f"{'':42} longest {1000 * max(taken):4.0f} ms")
        print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000:.0f} MB")
        _slide(results.root)
        many = open_results(folder / "many")
        if not many.table("videos").is_dir() or len(list(many.table("videos").iterdir())) < _VIDEOS:
            fill(many, _VIDEOS, 20)
        _list(many.root)


if __name__ == "__main__":
    main()
