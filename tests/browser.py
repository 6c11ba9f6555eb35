"""A real browser and the page it looks at, for the tests that do as a user does; made known in conftest.py."""

import base64
import contextlib
import logging
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
from lacking import lacking
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright
from prefect_server import end, eventually, without_prefect

logger = logging.getLogger(__name__)

FERFLOW = Path(sys.executable).with_name("ferflow")
PATIENCE_MS = 60_000
# What takes a second on a free machine takes many on a busy one.
CHROMIUM_OPTIONS = ["--no-sandbox", "--disable-dev-shm-usage"]
# Containers let no user make the namespaces of its sandbox, and have little shared memory.


@dataclass(frozen=True, slots=True)
class Viewer:
    """A running `ferflow view`."""

    url: str
    """Its address."""
    folder: Path
    """Where it runs, with `inbox` and `results`."""
    log: Path
    """What it said."""
    pid: int
    """Its process."""

    @property
    def memory_mb(self) -> float:
        """What the process holds now."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) / 1024


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium.

    Of a module, not of the session: while Playwright is started, nothing else in this thread can run an event loop.
    """
    with started_browser() as started:
        yield started


@contextlib.contextmanager
def started_browser(*options: str) -> Iterator[Browser]:
    """A browser with further options on its command line, for example for a camera."""
    chromium = shutil.which("chromium")
    if chromium is None:
        lacking("no browser: `sudo apt-get install chromium`")
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=[*CHROMIUM_OPTIONS, *options])
        try:
            yield started
        finally:
            started.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A window of its own for a test, 1440 pixels wide."""
    with opened(browser) as page:
        yield page


@contextlib.contextmanager
def opened(browser: Browser, *, width: int = 1440, height: int = 1000) -> Iterator[Page]:
    """A window that remembers nothing of others; of a failed test what the browser said is among what is printed."""
    context = browser.new_context(viewport={"width": width, "height": height}, accept_downloads=True)
    context.set_default_timeout(PATIENCE_MS)
    context.on("console", lambda message: logger.warning("%s: %s", message.type, message.text))
    context.on("weberror", lambda error: logger.warning("%s", error.error))
    context.on("requestfailed", lambda request: logger.warning("%s: %s", request.url, request.failure))
    try:
        yield context.new_page()
    finally:
        context.close()


def strip_colors(strip: Locator) -> np.ndarray:
    """The picture of a strip: uint8 (height, moments, 4) RGBA, clear where nobody is seen."""
    png = base64.b64decode(str(strip.get_attribute("src")).removeprefix("data:image/png;base64,"))
    picture = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    assert picture is not None
    return cv2.cvtColor(picture, cv2.COLOR_BGRA2RGBA)


def faint_texts(page: Page) -> list[str]:
    """What can be seen on a page and has less contrast with its ground than WCAG 2.1 AA asks for: 4.5, large text 3."""
    found: list[str] = page.evaluate(_FAINT_TEXTS)
    return found


_FAINT_TEXTS = """() => {
    const context = document.createElement("canvas").getContext("2d", {willReadFrequently: true})
    const rgba = color => {
        context.clearRect(0, 0, 1, 1)
        context.fillStyle = color
        context.fillRect(0, 0, 1, 1)
        const [red, green, blue, alpha] = context.getImageData(0, 0, 1, 1).data
        return [red, green, blue, alpha / 255]
    }
    const over = (top, ground) => ground.map((value, at) => top[3] * top[at] + (1 - top[3]) * value)
    const luminance = color => color.map(value => value / 255)
        .map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
        .reduce((sum, value, at) => sum + [0.2126, 0.7152, 0.0722][at] * value, 0)
    const looked = [], faint = []
    const roots = [document.body]
    for (const root of roots) for (const element of root.querySelectorAll("*")) {
        if (element.shadowRoot) roots.push(element.shadowRoot)
        const text = [...element.childNodes].filter(node => node.nodeType === 3).map(node => node.data.trim()).join("")
        const box = element.getBoundingClientRect()
        if (!text || !box.width || !box.height || !element.checkVisibility({visibilityProperty: true})) continue
        // A slider's value stands above its thumb, not on it.
        if (element.closest("[data-testid=stSliderThumbValue]")) continue
        if (element.closest("style, script, [disabled], [data-testid=stIconMaterial], [aria-hidden=true]")) continue
        const chain = []
        for (let at = element; at; at = at.parentElement || at.getRootNode().host) chain.unshift(at)
        let ground = [255, 255, 255], opacity = 1
        for (const at of chain) {
            const style = getComputedStyle(at)
            opacity *= style.opacity
            ground = over(rgba(style.backgroundColor), ground)
        }
        const style = getComputedStyle(element), ink = rgba(style.color)
        ink[3] *= opacity
        const [darker, lighter] = [luminance(over(ink, ground)), luminance(ground)].sort((a, b) => a - b)
        const ratio = (lighter + 0.05) / (darker + 0.05)
        const size = parseFloat(style.fontSize), isLarge = size >= 24 || (size >= 18.66 && style.fontWeight >= 700)
        if (!ink[3]) continue
        looked.push(text)
        if (ratio < (isLarge ? 3 : 4.5)) faint.push(`${text.slice(0, 40)}: ${ratio.toFixed(2)}`)
    }
    return looked.length > 5 ? faint : ["hardly any text was found"]
}"""


@contextlib.contextmanager
def serve_viewer(folder: Path, *options: str, **environment: str) -> Iterator[Viewer]:
    """`ferflow view` in a folder, on a port of its own; options and environment are added to its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "inbox").mkdir(exist_ok=True)
    log = folder / "view.log"
    with log.open("wb") as written:
        process = subprocess.Popen(
            [FERFLOW, "view", "--port", str(port), *options],
            cwd=folder,
            env=without_prefect() | environment,
            stdout=written,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:

        def is_up() -> bool:
            assert process.poll() is None, log.read_text()
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/_stcore/health", timeout=5) as answer:
                return bool(answer.status == 200)
            return False

        eventually(is_up, "the page")
        yield Viewer(url, folder, log, process.pid)
    finally:
        end(process)
