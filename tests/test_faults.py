"""What the world does to the pipeline: after it nothing is lost, nothing is there twice, nothing is left over.

The whole of it is `make faults`; here with less of everything. How each was seen to fail is said where it is tested.
"""

import os
import pickle
import random
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from damage import write_damaged
from fault_table import IS_WHOLE
from lacking import lacking
from test_formats import bomb

from ferflow.child_process import end_children
from ferflow.compaction import compact
from ferflow.config import LIMITS, Settings
from ferflow.errors import Stopped
from ferflow.frames import VideoReader
from ferflow.records import Analysis, VideoInfo
from ferflow.rows import write_faces
from ferflow.sources import KnownSources, find_videos, open_results
from ferflow.storage import content_id, utf8
from flows.in_process import analyze_in_process
from flows.report import Report
from models.warm import version_in_use

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
FRAMES = 5
"""In each of the clips, with one face in each."""
KILLS = 50 if IS_WHOLE else 2
DAMAGED = 500 if IS_WHOLE else 24
SLOWEST_SECONDS = 15
"""For each of the damaged files, where `patience_seconds` is 120; on a free machine the longest takes 3."""


@pytest.fixture(scope="session")
def clip(make_video, astronaut, tmp_path_factory) -> Path:
    """A tiny video of one person."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    return make_video(path, frame_count=FRAMES, image=np.ascontiguousarray(astronaut[:256, 96:352]))


def drop(clip: Path, path: Path, number: int) -> Path:
    """The clip's pictures under a hash of their own: in a box that no player reads is a number."""
    box = b"free" + f"{number:08d}".encode()
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(clip.read_bytes() + (len(box) + 4).to_bytes(4, "big") + box)
    return path


def fill(clip: Path, folder: Path, count: int) -> Path:
    for number in range(count):
        if not (path := folder / f"{number:03d}.mp4").exists():
            drop(clip, path, number)
    return folder


def analyze(inbox: Path, root: Path, *, listener: Report | None = None, **settings: object) -> Report:
    """The real pipeline over a folder, driven by this process."""
    videos = find_videos([inbox])
    with listener or Report(len(videos)) as report:
        analyze_in_process(
            videos,
            open_results(root),
            settings=Settings.model_validate(settings),
            force=False,
            workers=1,
            listener=report,
        )
    return report


def arguments_of(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "flows.cli", "analyze", *map(str, arguments), "--no-prefect", "--workers", "1"]


def command(*arguments: object, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        arguments_of(*arguments),
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def measured(*arguments: object) -> "tuple[subprocess.CompletedProcess[str], float]":
    """How a command ended, and the memory of the largest of its processes, in megabytes.

    A small process begins it: a process takes over the peak of the one that it was forked from, here the tests'.
    """
    begin = (
        "import resource, subprocess, sys\n"
        "code = subprocess.call(sys.argv[2:])\n"
        "open(sys.argv[1], 'w').write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))\n"
        "sys.exit(code)"
    )
    with tempfile.NamedTemporaryFile("r") as peak:
        ended = subprocess.run(
            [sys.executable, "-c", begin, peak.name, *arguments_of(*arguments)],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        return ended, int(peak.read()) / 1000


def assert_is_whole(root: Path, *, videos: int) -> None:
    """Each video is done, and once; its rows are all there, and once; its files can be read; nothing else is there."""
    rows = pd.read_parquet(root / "videos")
    assert rows.status.tolist() == ["done"] * videos, rows.error.dropna().tolist()
    assert rows.video_id.is_unique
    faces = pd.read_parquet(root / "faces")
    assert not faces.duplicated(["video_id", "frame_index", "track_id"]).any()
    assert faces.groupby("video_id").size().tolist() == [FRAMES] * videos
    assert set(pd.read_parquet(root / "segments").video_id) == set(rows.video_id)
    assert sorted(f"annotated/{path.name}" for path in (root / "annotated").iterdir()) == sorted(rows.annotated_path)
    assert sorted(f"timelines/{path.name}" for path in (root / "timelines").iterdir()) == sorted(rows.timeline_path)
    assert_nothing_is_half_written(root)


def count_frames(video: Path) -> int:
    with VideoReader(video) as reader:
        return sum(1 for _ in reader.frames(size_wh=(16, 16)))


def assert_nothing_is_half_written(root: Path) -> None:
    """Whatever a person sees can be read, and is of a video that was finished or is still to be."""
    for table in ("faces", "segments", "videos"):
        for path in (root / table).iterdir():
            pq.read_table(path)
    for path in (root / "annotated").glob("*"):
        assert count_frames(path) == FRAMES
    for path in (root / "timelines").glob("*"):
        assert path.read_bytes().endswith(b"IEND\xaeB`\x82")


def assert_nothing_is_left(root: Path) -> None:
    assert [path for path in (root / ".parts").rglob("*") if path.suffix == ".part"] == []
    assert [path for path in (root / ".claims").rglob("*") if path.is_file()] == []


@dataclass
class Reading:
    """Somebody who reads the tables all the time."""

    root: Path
    reads: int = 0
    faults: list[BaseException] = field(default_factory=list)

    def __enter__(self) -> "Reading":
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _read(self) -> None:
        while not self._over.wait(0.1):
            for table in ("faces", "segments", "videos"):
                try:
                    pd.read_parquet(self.root / table)
                    self.reads += 1
                except BaseException as error:
                    self.faults.append(error)


def processes_with(mark: str) -> list[int]:
    """Processes that were begun, by whomever, with this in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def gone(mark: str) -> bool:
    deadline = time.monotonic() + 20
    while processes_with(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not processes_with(mark)


@pytest.mark.fault("the process is killed with -9 at a random moment, or the process that reads a video is")
def test_a_batch_survives_being_killed_at_any_moment(clip, tmp_path, record_property):
    """Seen to fail: the claim of a process that died between its last step and giving the claim up stayed for ever."""
    count = 3 * KILLS
    inbox, root = fill(clip, tmp_path / "inbox", count), tmp_path / "results"
    open_results(root)
    rng, killed, children_killed, finished = random.Random(7), 0, 0, False
    kept: dict[Path, int] = {}
    with Reading(root) as reading:
        while not finished:
            mark = f"faults-{uuid.uuid4().hex}"
            process = command(inbox, "--results", root, FAULTS_MARK=mark)
            if killed < KILLS:
                if rng.random() < 0.8:
                    begins = len(list((root / "videos").iterdir()))
                    while process.poll() is None and len(list((root / "videos").iterdir())) == begins:
                        time.sleep(0.01)
                moment = rng.uniform(0, 1.5)
                if rng.random() < 0.5:
                    time.sleep(moment)
                    for child in set(processes_with(mark)) - {process.pid}:
                        os.kill(child, signal.SIGKILL)
                        children_killed += 1
                try:
                    process.wait(moment)
                except subprocess.TimeoutExpired:
                    process.kill()
                    killed += 1
            said, complained = process.communicate()
            finished = process.returncode == 0
            assert process.returncode in (0, -signal.SIGKILL), said + complained
            if finished and killed < KILLS:
                # A quick machine does many videos between two kills.
                count += KILLS
                fill(clip, inbox, count)
                finished = False
            assert gone(mark)
            assert_nothing_is_half_written(root)
            done = {path: path.stat().st_mtime_ns for path in (root / "videos").iterdir()}
            assert kept.items() <= done.items(), "a video that was done was done again"
            kept = done
    assert reading.faults == []
    assert_is_whole(root, videos=count)
    assert_nothing_is_left(root)
    record_property(
        "figures",
        f"{killed} kills and {children_killed} of the child over {count} videos: {len(kept) - 1} done, none again; "
        f"{reading.reads:,} reads meanwhile, {len(reading.faults)} failed",
    )


@pytest.fixture(scope="session")
def formats(make_video, astronaut, tmp_path_factory) -> list[Path]:
    """A clip in each of many formats, some with sound."""
    folder = tmp_path_factory.mktemp("formats")
    face = np.ascontiguousarray(astronaut[:160, 140:300])
    kinds = {
        "a.mp4": {"audio_seconds": 0.4},
        "b.mkv": {"audio_seconds": 0.4},
        "c.avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
        "d.webm": {"codec": "libvpx"},
        "e.mpg": {"codec": "mpeg2video", "fps": 25},
        "f.ts": {},
        "g.mov": {"codec": "mpeg4"},
        "h.mp4": {"codec": "libx265"},
        "i.webm": {"codec": "libvpx-vp9"},
        "j.flv": {},
        "k.gif": {"codec": "gif", "pix_fmt": "rgb8"},
        "l.mp4": {"codec": "libx264", "options": {"bf": "2"}, "frame_count": 30},
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [make_video(folder / name, **({"frame_count": 8, "image": face} | kind)) for name, kind in kinds.items()]


def test_the_same_clips_are_damaged_each_time(make_video, tmp_path):
    """Seen to fail: each Matroska file had other numbers of its own, so that the seed did not say what was damaged."""
    first, again = (make_video(tmp_path / name, frame_count=2) for name in ("first.mkv", "again.mkv"))
    assert first.read_bytes() == again.read_bytes()


@pytest.mark.fault("damaged files: bits flipped, cut, spliced, headers swapped, blocks blanked, numbers changed")
def test_damaged_files_end_as_done_or_failed_with_a_sentence(formats, real_beginnings, tmp_path, record_property):
    """Seen to fail: five of the 500, whose header names a codec that FFmpeg does not know, were errors that nobody
    foresaw, before `frames._check_claims` and `frames._sound_packets` looked for a decoder."""
    inbox, root = tmp_path / "inbox", tmp_path / "results"
    real = "real clips" if SHARED.is_dir() else f"real clips ({SHARED} is not there)"
    assert (len(formats), len(real_beginnings)) == (12, 9 if SHARED.is_dir() else 0)
    damaged = write_damaged(formats + real_beginnings, DAMAGED, inbox, seed=2026)
    if IS_WHOLE:
        assert damaged == {*formats, *real_beginnings}
    ended, megabytes = measured(inbox, "--results", root)
    complained = ended.stderr
    assert ended.returncode in (0, 1), ended.stdout + complained
    # Undamaged, the clip of 1280 x 720 takes 390.
    assert megabytes < 600
    assert "Traceback" not in complained
    rows = pd.read_parquet(root / "videos")
    assert set(rows.status) <= {"done", "failed"}
    copies = DAMAGED - len(rows)
    assert copies == complained.count(": the same content as ")
    sentences = rows.error.dropna()
    assert rows[rows.status == "failed"].error.str.endswith(".").all()
    assert not sentences.str.contains(r"Traceback|Error\(|<|0x").any(), sentences.tolist()
    # The first is of no video: it is written as the run begins.
    seconds = np.diff(sorted(path.stat().st_mtime for path in (root / "videos").iterdir()))
    assert len(seconds) == len(rows)
    assert max(seconds) < SLOWEST_SECONDS
    assert_nothing_is_left(root)
    record_property(
        "figures",
        f"{DAMAGED} files of {len(damaged & {*formats})} formats and {len(damaged & {*real_beginnings})} {real}: "
        f"{(rows.status == 'done').sum()} done, {(rows.status == 'failed').sum()} failed with a sentence, "
        f"{copies} the same as others, 0 crashes of the run, "
        f"the longest took {max(seconds):.1f} s, the largest process {megabytes:.0f} MB",
    )


@contextmanager
def beginning_children_with(code: str, folder: Path) -> Iterator[None]:
    """Each process that reads videos meanwhile runs this first."""
    # Python imports a module of this name as it begins, which of this test's processes only the children do.
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(code)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        end_children()
        try:
            yield
        finally:
            end_children()


IN_THE_CHILD = """
import ctypes, functools, re
from ferflow.frames import VideoReader

ways = {
    "crash.mp4": lambda: ctypes.string_at(0),
    "hang.mp4": lambda: re.match("(a+)+$", "a" * 60 + "b"),
    "swell.mp4": lambda: bytearray(4 << 30),
}
opened = VideoReader.__init__

@functools.wraps(opened)
def open_and(self, path, **limits):
    opened(self, path, **limits)
    ways.get(path.name, lambda: None)()

VideoReader.__init__ = open_and
"""
"""Makes the reading of files of three names end as damaged ones have made C code end."""


@pytest.mark.fault("in a batch lie files at which what reads them crashes, hangs or swells, each time")
def test_a_file_that_ends_its_reader_costs_no_other(clip, tmp_path, record_property):
    """Seen to fail: where `call_apart` did not take a child's death for the video's fault, each was an error that
    nobody foresaw; without `_limit_memory` the one that swells was done, and without the patience the one that hangs
    was called slow."""
    again = "also when it was tried again, so it was given up; the file is probably damaged."
    ends = {
        "crash.mp4": f"what reads it crashed (SIGSEGV), {again}",
        "swell.mp4": f"what reads it asks for more than 3 GB of memory, {again}",
    }
    if IS_WHOLE:
        ends["hang.mp4"] = "nothing has come of it for 30 s before the first frame, so it was given up; "
    inbox, root = fill(clip, tmp_path / "inbox", 4), tmp_path / "results"
    for number, name in enumerate(ends, start=4):
        drop(clip, inbox / name, number)
    with beginning_children_with(IN_THE_CHILD, tmp_path / "begun"):
        analyze(inbox, root, max_memory_gb=3, patience_seconds=30)
    rows = pd.read_parquet(root / "videos")
    errors = {Path(row.source).name: row.error for row in rows[rows.status == "failed"].itertuples()}
    assert errors.keys() == ends.keys()
    assert [name for name, sentence in ends.items() if not errors[name].startswith(sentence)] == [], errors
    done = rows[rows.status == "done"]
    assert sorted(Path(source).name for source in done.source) == [f"{number:03d}.mp4" for number in range(4)]
    assert_nothing_is_half_written(root)
    assert_nothing_is_left(root)
    record_property("figures", f"{len(ends)} of {len(rows)} files: failed with a sentence, the other {len(done)} done")


# Bombs.


def huge_gif(clip: Path, path: Path) -> Path:
    """A tiny file whose picture is 16,000 x 16,000 by what its header says."""
    content = bytearray(clip.read_bytes())
    content[6:10] = struct.pack("<HH", 16_000, 16_000)
    path.write_bytes(content)
    return path


def growing_avi(clip: Path, path: Path) -> Path:
    """It says 160 x 160, and every picture in it says 16,000 x 16,000."""
    content = bytearray(clip.read_bytes())
    at = content.find(b"\xff\xc0")
    while at >= 0:
        content[at + 5 : at + 9] = struct.pack(">HH", 16_000, 16_000)
        at = content.find(b"\xff\xc0", at + 1)
    path.write_bytes(content)
    return path


def huge_png(path: Path) -> Path:
    """A black picture of 16,000 x 16,000 in 40 kB, which could be decoded."""
    path.write_bytes(bomb(16_000))
    return path


def million_frames(clip: Path, path: Path, *, size_bytes: int = 0) -> Path:
    """An MP4 whose index names a million frames of 20 bytes, of a few kilobytes or, with zeros at its end, as large."""
    content = bytearray(clip.read_bytes())
    for box, numbers in {
        b"stts": (1, 1_000_000, 1024),
        b"stsz": (20, 1_000_000),
        b"stsc": (1, 1, 1_000_000, 1),
    }.items():
        struct.pack_into(f">{len(numbers)}I", content, content.index(box) + 8, *numbers)
    path.write_bytes(content.ljust(size_bytes, b"\0"))
    return path


@pytest.mark.fault("small files that claim 16,000 x 16,000 or a million frames, before the whole pipeline")
def test_what_claims_too_much_is_refused_before_it_costs_anything(formats, clip, tmp_path, record_property):
    """Seen to fail: where nothing held `max_megapixels`, the two pictures of 16,000 x 16,000 were decoded and done;
    without `max_frames` the million frames were read before anything was said."""
    by_suffix = {path.name: path for path in formats}
    inbox, root, config = tmp_path / "inbox", tmp_path / "results", tmp_path / "limits.toml"
    drop(clip, inbox / "clip.mp4", 0)
    # Neither is the default: the sentences say which one held.
    config.write_text("max_megapixels = 250\nmax_frames = 999_999\n")
    huge = "its picture of 16000 x 16000 is larger than 250 million pixels, which is refused."
    ends = {
        huge_gif(by_suffix["k.gif"], inbox / "huge.gif"): huge,
        huge_png(inbox / "huge.mp4"): huge,
        # By so few bytes FFmpeg knows that the picture is not there.
        growing_avi(by_suffix["c.avi"], inbox / "growing.avi"): "no frame of this video can be decoded; ",
        million_frames(clip, inbox / "million.mp4"): "it claims 1,000,000 frames in ",
        # As many bytes as frames, all of them zero, of which an archive or a disk keeps none.
        million_frames(clip, inbox / "sparse.mp4", size_bytes=2_000_000): "it has more than 999,999 frames, which is ",
    }
    _, usual_megabytes = measured(inbox / "clip.mp4", "--results", tmp_path / "usual")
    ended, megabytes = measured(inbox, "--results", root, "--config", config)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr
    rows = pd.read_parquet(root / "videos").set_index("source")
    assert rows.status.to_dict() == {str(path): "failed" for path in ends} | {str(inbox / "clip.mp4"): "done"}
    said = {path: rows.error[str(path)] for path in ends}
    assert [sentence for path, sentence in said.items() if not sentence.startswith(ends[path])] == []
    more_megabytes = megabytes - usual_megabytes
    assert more_megabytes < 150
    assert_nothing_is_left(root)
    by = {name: sum(f"raise {name} " in sentence for sentence in said.values()) for name in LIMITS}
    others = len(said) - sum(by.values())
    record_property(
        "figures",
        f"{len(said)} bombs beside a clip that is done: {by['max_megapixels']} refused by max_megapixels, "
        f"{by['max_frames']} by max_frames, {others} as damaged, each in a sentence; "
        f"the largest process took {more_megabytes:.0f} MB more than for the clip alone",
    )


@pytest.mark.fault("a picture or a number of frames above the settings' limits")
def test_limits_are_those_of_the_settings(clip, tmp_path, record_property):
    """Seen to fail: without `Limits.check_picture` it was said that nothing can be decoded, without `check_frames` the
    video was done."""
    inbox = tmp_path / "inbox"
    drop(clip, inbox / "clip.mp4", 0)
    made = [
        analyze(inbox, tmp_path / name, **limit).failed[0].error
        for name, limit in {"pixels": {"max_megapixels": 0.01}, "frames": {"max_frames": FRAMES - 1}}.items()
    ]
    assert made[0] is not None
    assert made[1] is not None
    assert made[0].startswith("its picture of 256 x 256 is larger than 0.01 million pixels, which is refused.")
    assert made[1].startswith(f"it has more than {FRAMES - 1} frames, which is refused.")
    assert Settings(max_frames=1).settings_hash == Settings().settings_hash
    record_property("figures", f"a whole clip above each of {len(made)}: {len(made)} times refused in a sentence")


# Disks.


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A disk of 2 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        lacking(f"a disk of one's own needs root ({done.stderr.strip()})")
    try:
        yield folder
    finally:
        end_children()  # They have their unfinished files there.
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.fault("the disk is full")
def test_a_full_disk_ends_the_run_with_a_sentence_and_loses_nothing(clip, small_disk, tmp_path, record_property):
    """Seen to fail: where `process_each` did not take OSError for the end of the run, it went on to every other video
    and ended with a traceback."""
    count = 12
    inbox, root = fill(clip, tmp_path / "inbox", count), small_disk / "results"
    open_results(root)
    filler = small_disk / "filler"
    filler.write_bytes(bytes(1_450_000))
    process = command(inbox, "--results", root)
    said, complained = process.communicate()
    assert process.returncode == 2, said + complained
    (sentence,) = [line for line in complained.splitlines() if line.startswith("ferflow: ")]
    assert "No space left on device" in sentence
    assert "Traceback" not in complained
    before = len(pd.read_parquet(root / "videos"))
    assert before < count
    assert_nothing_is_half_written(root)
    filler.unlink()
    subprocess.run(["mount", "-o", "remount,size=100m", small_disk], check=True)
    report = analyze(inbox, root)
    assert_is_whole(root, videos=count)
    assert_nothing_is_left(root)
    record_property(
        "figures", f"full after {before} of {count} videos, which are kept; {len(report.done)} done once it has space"
    )


@pytest.mark.fault("the disk of a flow run is full")
def test_a_full_disk_fails_a_flow_run_with_a_sentence_at_once(clip, small_disk, tmp_path, server, record_property):
    """Seen to fail: a task whose disk was full was tried three times more, over 77 s, before anything was said."""
    count = 12
    inbox, root = fill(clip, tmp_path / "inbox", count), small_disk / "results"
    open_results(root)
    filler = small_disk / "filler"
    filler.write_bytes(bytes(1_450_000))

    def analyze_on_server() -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "flows.cli", "analyze", inbox, "--results", root, "--workers", "2"]
        return subprocess.run(command, cwd=ROOT, env=server.environment, capture_output=True, text=True)

    ended = analyze_on_server()
    assert ended.returncode == 2, ended.stdout + ended.stderr
    run = server.last_run()
    assert run["state_name"] == "Failed"
    sentence = (
        f"{root}: nothing can be read or written there (No space left on device). Make room or mend the disk, and "
        "start this run again: what was finished is kept."
    )
    assert run["state"]["message"] == sentence
    assert ended.stderr.splitlines()[-1] == f"ferflow: {sentence}"
    tasks = server.ask("task_runs/filter", flow_runs={"id": {"any_": [run["id"]]}})
    assert {task["run_count"] for task in tasks} == {1}
    before = len(pd.read_parquet(root / "videos"))
    assert before < count
    assert_nothing_is_half_written(root)
    filler.unlink()
    subprocess.run(["mount", "-o", "remount,size=100m", small_disk], check=True)
    ended = analyze_on_server()
    assert ended.returncode == 0, ended.stdout + ended.stderr
    message = server.last_run()["state"]["message"]
    assert message == f"{count - before} analysed, {before} already done, 0 failed."
    assert_is_whole(root, videos=count)
    assert_nothing_is_left(root)
    record_property("figures", f"{run['state_name']} after {before} of {count} videos; once it has space: {message}")


@pytest.mark.fault("the results folder is read-only")
def test_results_that_are_read_only_end_the_run_with_a_sentence(clip, small_disk, tmp_path, record_property):
    """Seen to fail: without `except OSError` in `flows.cli.main` it was a traceback."""
    inbox, root = fill(clip, tmp_path / "inbox", 3), small_disk / "results"
    # In a process of its own, because nobody may have a file open there.
    program = "import pathlib, sys; from ferflow.sources import open_results; open_results(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", program, root], cwd=ROOT, check=True)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    process = command(inbox, "--results", root)
    said, complained = process.communicate()
    assert process.returncode == 2, said + complained
    assert "Traceback" not in complained
    (sentence,) = [line for line in complained.splitlines() if line.startswith("ferflow: ")]
    assert "Read-only file system" in sentence
    done = len(pd.read_parquet(root / "videos"))
    assert done == 0
    record_property("figures", f"{done} of 3 videos done, the command ends with status 2 and a sentence")


@pytest.mark.fault("the results folder of a flow run is read-only")
def test_results_that_are_read_only_fail_a_flow_run_with_a_sentence(
    clip, small_disk, tmp_path, server, record_property
):
    """Seen to fail: without `_disk_at_fault` in `flows.analyze_videos` it was a traceback, and the run's message an
    exception."""
    inbox, root = fill(clip, tmp_path / "inbox", 3), small_disk / "results"
    program = "import pathlib, sys; from ferflow.sources import open_results; open_results(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", program, root], cwd=ROOT, check=True)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    ended = subprocess.run(
        [sys.executable, "-m", "flows.cli", "analyze", inbox, "--results", root, "--workers", "1"],
        cwd=ROOT,
        env=server.environment,
        capture_output=True,
        text=True,
    )
    assert "Traceback" not in ended.stdout + ended.stderr, ended.stderr
    assert ended.returncode == 2, ended.stdout + ended.stderr
    run = server.last_run()
    assert run["state_name"] == "Failed"
    assert run["state"]["message"].startswith(f"{root}: nothing can be read or written there (Read-only file system).")
    assert f"ferflow: {run['state']['message']}" in ended.stderr
    done = len(pd.read_parquet(root / "videos"))
    assert done == 0
    record_property("figures", f"{done} of 3 videos done, the run is {run['state_name']} with a sentence")


# Files that do not keep still.


CHANGED = "it was changed or replaced while it was read; the next run analyses it once more."


class Meddling(Report):
    """Does something to a video's file while it is looked at."""

    def __init__(self, count: int, stage: str, meddle: "Callable[[Path], object]") -> None:
        super().__init__(count)
        self._when, self._meddle = stage, meddle

    def stage(self, job, name, done, expected) -> None:
        super().stage(job, name, done, expected)
        if (job.source.name, name, done) == ("b.mp4", self._when, 1):
            self._meddle(job.source)


IT_VANISHES = """
from ferflow.frames import VideoReader

opened, given = VideoReader.__init__, VideoReader.frames
readings = iter(("before it is opened", "before it is drawn"))

def open_or_vanish(self, path, **limits):
    if path.name == "b.mp4" and next(readings) == PLACE:
        path.unlink()
    opened(self, path, **limits)

def give_or_vanish(self, **options):
    for frame in given(self, **options):
        if PLACE == "in the middle of its frames" and self._path.name == "b.mp4" and frame.index == 2:
            self._path.unlink()
        yield frame

VideoReader.__init__, VideoReader.frames = open_or_vanish, give_or_vanish
"""
"""Takes away a file of this name in the process that reads it, at the place that the first line of all says."""


@pytest.mark.fault("a source vanishes while it is read")
@pytest.mark.parametrize("place", ["before it is opened", "in the middle of its frames", "before it is drawn"])
def test_a_source_that_vanishes_harms_no_other(place, clip, tmp_path, record_property):
    """Seen to fail: the failure was held against the content, and stood when the file was back; later it had a row of
    its own, beside faces of no video."""
    inbox, root = tmp_path / "inbox", tmp_path / "results"
    for number, name in enumerate("abc"):
        drop(clip, inbox / f"{name}.mp4", number)
    with beginning_children_with(f"PLACE = {place!r}\n{IT_VANISHES}", tmp_path / "begun"):
        report = analyze(inbox, root)
    assert not (inbox / "b.mp4").exists()
    assert [(summary.source, summary.error) for summary in report.failed] == [
        (str(inbox / "b.mp4"), "there is no such file.")
    ]
    rows = pd.read_parquet(root / "videos")
    assert sorted(rows.source) == [str(inbox / "a.mp4"), str(inbox / "c.mp4")]
    assert set(rows.status) == {"done"}
    assert set(pd.read_parquet(root / "faces").video_id) == set(rows.video_id), "no rows of a video that is not there"
    assert_nothing_is_half_written(root)
    drop(clip, inbox / "b.mp4", 1)
    again = analyze(inbox, root)
    assert len(again.done) == 1, "it is tried again once it is back"
    assert_is_whole(root, videos=3)
    record_property(
        "figures",
        f"{len(report.failed)} of 3 files {place}: a sentence, the other {len(rows)} done; "
        f"once it is back {len(again.done)} done",
    )


@pytest.mark.fault("a source vanishes while its copy is drawn")
def test_of_a_source_that_vanishes_once_it_is_open_nothing_is_missing(clip, tmp_path, record_property):
    inbox, root = tmp_path / "inbox", tmp_path / "results"
    for number, name in enumerate("abc"):
        drop(clip, inbox / f"{name}.mp4", number)
    report = analyze(inbox, root, listener=Meddling(3, "drawing", Path.unlink))
    assert not (inbox / "b.mp4").exists()
    assert report.failed == []
    assert_is_whole(root, videos=3)
    record_property("figures", f"1 of 3 files: {len(report.done)} done, whole, for it was open")


@pytest.mark.fault("a file is replaced by another of the same name, also while it is read")
@pytest.mark.parametrize("stage", ["faces", "drawing"])
def test_a_file_that_is_replaced_is_never_mixed_with_the_other(stage, clip, make_video, tmp_path, record_property):
    """Seen to fail: before `Job.at_hand` looked again, faces of one file were drawn on the pictures of the other."""
    inbox, root = tmp_path / "inbox", tmp_path / "results"
    other = make_video(tmp_path / "other.mp4", frame_count=9, width=64, height=64)
    for number, name in enumerate("ab"):
        drop(clip, inbox / f"{name}.mp4", number)
    old_id = content_id(inbox / "b.mp4")

    def replace(path: Path) -> None:
        part = path.with_suffix(".new")
        part.write_bytes(other.read_bytes())
        part.replace(path)

    report = analyze(inbox, root, listener=Meddling(2, stage, replace))
    assert [summary.error for summary in report.failed] == [CHANGED]
    again = analyze(inbox, root)
    assert len(again.done) == 1
    rows = pd.read_parquet(root / "videos").set_index("video_id")
    new_id = content_id(inbox / "b.mp4")
    assert (rows.status[new_id], rows.frame_count[new_id]) == ("done", 9)
    for video_id, row in rows[rows.status == "done"].iterrows():
        frames = count_frames(root / row.annotated_path)
        assert (frames, row.frame_count) == ((9, 9) if video_id == new_id else (FRAMES, FRAMES)), row.source
    assert old_id not in rows.index, "nothing is said of what was not read to its end"
    assert set(pd.read_parquet(root / "faces").video_id) == {content_id(inbox / "a.mp4")}
    assert len(list((root / "annotated").iterdir())) == 2
    record_property(
        "figures",
        f"{len(report.failed)} of 2 files replaced: a sentence, the other {len(report.done)} done; "
        f"the next run does {len(again.done)}, none of mixed frames",
    )


@pytest.mark.fault("a file's time changes while it is read, as where a copy ends")
@pytest.mark.parametrize("stage", ["faces", "drawing"])
def test_a_file_that_is_touched_while_it_is_read_is_done_by_the_next_run(stage, clip, tmp_path, record_property):
    """Seen to fail: its content was failed for ever, also under another name."""
    inbox, root = tmp_path / "inbox", tmp_path / "results"
    drop(clip, inbox / "b.mp4", 0)
    report = analyze(inbox, root, listener=Meddling(1, stage, os.utime))
    assert [summary.error for summary in report.failed] == [CHANGED]
    assert len(pd.read_parquet(root / "videos")) == 0
    assert len(pd.read_parquet(root / "faces")) == 0
    again = analyze(inbox, root)
    assert len(again.done) == 1
    assert_is_whole(root, videos=1)
    record_property("figures", f"{len(report.failed)} of 1 file: a sentence; the next run does {len(again.done)}")


@pytest.mark.fault("what reads a video is halted for longer than patience_seconds")
def test_a_video_that_could_not_be_read_in_time_is_done_by_the_next_run(clip, tmp_path, record_property):
    """Seen to fail: it was called damaged, for ever."""
    inbox, root, mark = tmp_path / "inbox", tmp_path / "results", f"faults-{uuid.uuid4().hex}"
    end_children()  # The next ones are known by their environment.

    def halt(path: Path) -> None:
        for child in processes_with(mark):
            os.kill(child, signal.SIGSTOP)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAULTS_MARK", mark)
        drop(clip, inbox / "a.mp4", 0)
        analyze(inbox, root)  # The models are loaded.
        drop(clip, inbox / "b.mp4", 1)
        report = analyze(inbox, root, listener=Meddling(2, "faces", halt), patience_seconds=10)
    (failed,) = report.failed
    assert failed.error is not None
    # In a machine's own time: while its faces are looked for, or just before it is drawn.
    assert failed.error.startswith("nothing has come of it for 10 s ")
    assert failed.error.endswith("The next run tries it again.")
    assert len(pd.read_parquet(root / "videos")) == 1
    again = analyze(inbox, root)
    assert len(again.done) == 1
    assert_is_whole(root, videos=2)
    record_property("figures", f"{len(report.failed)} of 2 videos: a sentence; the next run does {len(again.done)}")


@pytest.mark.fault("a run with other settings is stopped between a video's faces and its row")
def test_tables_agree_once_a_run_that_was_stopped_in_the_middle_is_followed_by_another(clip, tmp_path, record_property):
    """Seen to fail: the old row was taken for the result of the old settings, beside faces of the others."""
    inbox, root = tmp_path / "inbox", tmp_path / "results"
    drop(clip, inbox / "b.mp4", 0)
    analyze(inbox, root)

    def stop(path: Path) -> None:
        raise Stopped("Stopped.")

    analyze(inbox, root, listener=Meddling(1, "drawing", stop), max_fps=1)
    assert len(pd.read_parquet(root / "faces")) == 1
    assert pd.read_parquet(root / "videos").status.tolist() == ["done"], "the old row is not lost"
    again = analyze(inbox, root)
    assert len(again.done) == 1
    assert_is_whole(root, videos=1)
    later = analyze(inbox, root)
    assert later.unchanged == 1
    record_property("figures", f"1 video: {len(again.done)} done again by the next run, {len(later.done)} by a third")


def test_pictures_named_after_an_old_name_go_when_the_video_is_done_again(clip, tmp_path):
    inbox, root = tmp_path / "inbox", tmp_path / "results"
    video = drop(clip, inbox / "old.mp4", 0)
    analyze(inbox, root)
    video.rename(inbox / "new.mp4")
    analyze(inbox, root, max_fps=5)
    (row,) = pd.read_parquet(root / "videos").itertuples()
    assert Path(row.annotated_path).name.startswith("new-")
    assert [path.name for path in (root / "annotated").iterdir()] == [Path(row.annotated_path).name]
    assert [path.name for path in (root / "timelines").iterdir()] == [Path(row.timeline_path).name]


def name_pictures(root: Path, video_id: str, **names: str) -> None:
    """Write a video's row anew, with other names of its pictures."""
    path = root / "videos" / f"{video_id}.parquet"
    row = pq.read_table(path)
    for column, name in names.items():
        row = row.set_column(row.schema.get_field_index(column), row.schema.field(column), [[name]])
    pq.write_table(row, path)


def test_pictures_that_an_older_version_named_go_when_the_video_is_done_again(clip, tmp_path):
    """Seen to fail: they stayed beside the new ones, and no row named them."""
    inbox, root = tmp_path / "inbox", tmp_path / "results"
    video_id = content_id(drop(clip, inbox / "a.mp4", 0))
    analyze(inbox, root)
    short = {
        "annotated_path": f"annotated/a-{video_id[:8]}.mp4",
        "timeline_path": f"timelines/a-{video_id[:8]}.png",
    }
    (root / "annotated" / f"a-{video_id}.mp4").rename(root / short["annotated_path"])
    (root / "timelines" / f"a-{video_id}.png").rename(root / short["timeline_path"])
    name_pictures(root, video_id, **short)
    analyze(inbox, root, max_fps=50)
    assert_is_whole(root, videos=1)


@pytest.mark.fault("a row of a video that names other files as its pictures")
def test_no_other_file_goes_with_a_replaced_result(clip, tmp_path, record_property):
    """Seen to fail: without the look at folder and name in `stages.remove_picture` both were removed."""
    inbox, root = fill(clip, tmp_path / "inbox", 2), tmp_path / "results"
    analyze(inbox, root)
    mine, other = (content_id(inbox / f"{number:03d}.mp4") for number in range(2))
    (outside := tmp_path / f"x-{mine}.mp4").touch()
    name_pictures(
        root,
        mine,
        annotated_path=f"annotated/../../x-{mine}.mp4",
        timeline_path=f"timelines/001-{other}.png",
    )
    analyze(inbox / "000.mp4", root, max_fps=50)
    assert outside.exists()
    assert_is_whole(root, videos=2)
    named = (outside, root / "timelines" / f"001-{other}.png")
    record_property("figures", f"2 files of others named: {sum(not path.exists() for path in named)} removed")


# Damaged tables.


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def replace(path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), path)


def blank_rows(path: Path) -> None:
    """What says which videos are in it can be read, their rows cannot."""
    content = bytearray(path.read_bytes())
    group = pq.read_metadata(path).row_group(0)
    for number in range(group.num_columns):
        column = group.column(number)
        first = column.dictionary_page_offset or column.data_page_offset
        content[first : first + column.total_compressed_size] = bytes(column.total_compressed_size)
    path.write_bytes(content)


@pytest.mark.fault("a merged table is damaged")
@pytest.mark.parametrize("table", ["videos", "faces"])
@pytest.mark.parametrize("damage", [cut, replace, blank_rows])
def test_a_damaged_merged_table_stops_no_new_video(damage, table, clip, tmp_path, record_property):
    """Seen to fail: the run ended at the first video that was not found elsewhere."""
    inbox, root = fill(clip, tmp_path / "inbox", 2), tmp_path / "results"
    analyze(inbox, root)
    tomorrow = datetime.now(UTC).date() + timedelta(days=1)
    assert compact(open_results(root), today=tomorrow) is not None
    (path,) = (root / table).glob("compact-*")
    damage(damaged := path.rename(path.with_name("compact-2026-01-01-0123456789ab.parquet")))
    content = damaged.read_bytes()
    fill(clip, inbox, 4)
    report = analyze(inbox, root, max_fps=50)
    assert [Path(summary.source).name for summary in report.done] == ["002.mp4", "003.mp4"]
    assert [summary.error for summary in report.failed] == [
        f"{damaged}: this table is damaged; put a copy of the file back, or remove it and analyse its videos again."
    ] * 2
    assert damaged.read_bytes() == content
    damaged.unlink()
    again = analyze(inbox, root, max_fps=50)
    assert_is_whole(root, videos=4)
    record_property(
        "figures",
        f"{len(report.done)} new videos done, of {len(report.failed)} it is said which file is damaged; "
        f"{len(again.done)} done once that is gone",
    )


# Names.


@pytest.mark.fault("names with ../, newlines, quotes, control characters, 255 bytes; links that lead outside")
def test_hostile_names_stay_names(make_video, astronaut, tmp_path, record_property):
    """Seen to fail: a link to itself ended the run, and a backslash in a name became a folder in `annotated_path`;
    where `storage._readable` did not cut names, a long one ended the run, and where `Results.annotated` did not add the
    video's id, two of the same name had one file; without `utf8` a name that is no text broke off the run."""
    inbox, root, outside = tmp_path / "inbox", tmp_path / "results", tmp_path / "outside"
    face = np.ascontiguousarray(astronaut[:256, 96:352])
    names = [
        "line\nbreak.mp4",
        "quote'\".mp4",
        "$(touch pwned) `touch pwned`;.mp4",
        "-rf --results=x.mp4",
        "%s%n{0}{x}.mp4",
        "[red]markup[/red].mp4",
        "\x1b[31mred\x1b]0;title\x07.mp4",
        "..mp4.mp4",
        "..\\..\\up.mp4",
        "é" * 125 + ".mp4",
        "\udcff\udcfe.mp4",
        "same.mp4",
        "same.MP4",
        "same.mkv.mp4",
        "CON.mp4",
        " .mp4",
    ]
    paths = [*(inbox / name for name in names), inbox / "sub\n.." / "same.mp4", outside / "secret.mp4"]
    frames = {path: count for count, path in enumerate(paths, 1)}
    for path, count in frames.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        make_video(tmp_path / "made.mp4", frame_count=count, image=face).rename(path)
    (inbox / "link.mp4").symlink_to(outside / "secret.mp4")
    frames[inbox / "link.mp4"] = frames.pop(outside / "secret.mp4")
    (inbox / "loop.mp4").symlink_to(inbox / "loop.mp4")
    (inbox / "up").symlink_to(tmp_path)
    for path in [path for path in frames if path.name.startswith(".")]:  # Hidden ones are passed over.
        del frames[path]
    before = sorted(path for path in tmp_path.rglob("*") if not path.is_relative_to(root))
    report = analyze(inbox, root)
    after = sorted(path for path in tmp_path.rglob("*") if not path.is_relative_to(root))
    assert after == before
    assert [summary.error for summary in report.failed if "loop" not in summary.source] == []
    done = pd.read_parquet(root / "videos").query("status == 'done'")
    for path in [*done.annotated_path, *done.timeline_path]:
        assert (root / path).resolve().parent.parent == root
        assert (root / path).is_file()
    # Each has another number of frames, with a face in each of them.
    faces = pd.read_parquet(root / "faces").groupby("video_id").size()
    made = {
        (row.video_id, row.source): (row.frame_count, faces[row.video_id], count_frames(root / row.annotated_path))
        for row in done.itertuples()
    }
    expected = {(content_id(path), utf8(str(path))): (count,) * 3 for path, count in frames.items()}
    assert made == expected
    assert done.annotated_path.is_unique
    assert done.timeline_path.is_unique
    record_property(
        "figures",
        f"{len(names) + 4} names: {len(set(after) - set(before))} files outside the results folder; "
        f"{len(made)} videos done, {len(made.items() - expected.items())} mixed up",
    )


@pytest.mark.fault("a broken file whose name is no text")
def test_a_broken_file_whose_name_is_no_text_is_recorded(clip, tmp_path, record_property):
    """Seen to fail: it was an error that nobody foresaw, in each run anew."""
    inbox, root = tmp_path / "inbox", tmp_path / "results"
    drop(clip, inbox / "ok.mp4", 0)
    (inbox / os.fsdecode(b"caf\xe9.mp4")).write_text("Dear all")
    report = analyze(inbox, root)
    (failed,) = report.failed
    assert (failed.source, failed.error) == (
        str(inbox / "caf") + "\\xe9.mp4",
        "this is a text file, not a video, whatever its name says.",
    )
    assert sorted(pd.read_parquet(root / "videos").status) == ["done", "failed"]
    record_property(
        "figures", f"{len(report.failed)} of 2 files failed with a sentence, the other {len(report.done)} done"
    )


@pytest.mark.fault("a name that steers the terminal")
def test_a_name_does_not_steer_the_terminal(clip, tmp_path, capsys, record_property):
    """Seen to fail: the terminal was cleared and had another title."""
    inbox = tmp_path / "inbox"
    name = "a\x1b]0;title\x07\x1b[2J\u202e é.mp4"
    drop(clip, inbox / name, 0)
    drop(clip, inbox / f"copy {name}", 0)
    analyze(inbox, tmp_path / "results")
    said = capsys.readouterr().err
    assert "a\\x1b]0;title\\x07\\x1b[2J\\u202e é.mp4: 5 frames" in said
    steering = [character for character in said if character != "\n" and not character.isprintable()]
    assert steering == []
    record_property("figures", f"{said.count('2J')} lines with its name: {len(steering)} characters that steer")


# Strangers' files.


@pytest.mark.fault("a results file from a stranger")
def test_a_results_file_from_a_stranger_runs_no_code(clip, tmp_path, record_property):
    """Seen to fail: a pickle in the place of a faces table ran nothing, but its video ended in an unforeseen error."""
    mark = tmp_path / "code-ran"

    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return os.system, (f"touch {mark}",)

    inbox, root, trapped_files = fill(clip, tmp_path / "inbox", 2), tmp_path / "results", 0
    analyze(inbox, root)
    for table in ("faces", "segments", "videos"):
        for path in (root / table).glob("[0-9a-f]*.parquet"):
            trapped_files += 1
            read = pq.read_table(path)
            trapped = pa.field(
                read.schema[0].name,
                read.schema[0].type,
                metadata={
                    "ARROW:extension:name": "arrow.py_extension_type",
                    "ARROW:extension:metadata": pickle.dumps(Trap(), 0).decode("latin-1"),
                },
            )
            schema = read.schema.set(0, trapped).with_metadata(
                {**(read.schema.metadata or {}), b"PANDAS_ATTRS": pickle.dumps(Trap()), b"pandas": b'{"a": "!!python"}'}
            )
            path.write_bytes(b"")
            pq.write_table(pa.table(read.columns, schema=schema), path)
    analyze(inbox, root)
    for path in (root / "faces").glob("[0-9a-f]*.parquet"):
        trapped_files += 1
        path.write_bytes(pickle.dumps(Trap()))
    report = analyze(inbox, root, max_fps=5)
    assert not mark.exists()
    assert set(pd.read_parquet(root / "videos").status) == {"done"}
    record_property(
        "figures", f"{trapped_files} files: code ran {int(mark.exists())} times, {len(report.done)} of 2 videos done"
    )


@pytest.mark.fault("a results file from a stranger that names another folder")
def test_a_faces_file_from_a_stranger_is_written_nowhere_else(clip, tmp_path, record_property):
    """Seen to fail: segments, a timeline, a row and a drawn copy were made beside the results folder."""
    inbox, root = tmp_path / "inbox", tmp_path / "results"
    video = drop(clip, inbox / "a.mp4", 0)
    results = open_results(root)
    described = Analysis(
        video_id="../../outside/evil",
        source="../x.mp4",
        model_version=version_in_use("default"),
        settings_hash=Settings().settings_hash,
        started_at=datetime.now(UTC),
        info=VideoInfo(256, 256, FRAMES, 0.5, 10.0, has_audio=False, warning=None),
    )
    path = results.rows("faces", content_id(video))
    write_faces(path, iter(()), lambda: described, parts=results.parts)
    assert len(analyze(inbox, root).done) == 1
    assert_is_whole(root, videos=1)
    elsewhere = {path.name for path in tmp_path.iterdir()} - {"inbox", "results"}
    assert elsewhere == set()
    record_property("figures", f"1 file: {len(elsewhere)} written elsewhere, its video done")


@pytest.mark.fault("a row of a video from a stranger that names another folder")
@pytest.mark.parametrize("way", ["absolute", "relative"])
def test_a_row_from_a_stranger_is_written_nowhere_else(way, clip, tmp_path, record_property):
    """Seen to fail: without `checked_id` in `rows.parse_video` a row was written beside the results folder."""
    inbox, root = tmp_path / "inbox", tmp_path / "results"
    video_id = content_id(drop(clip, inbox / "a.mp4", 0))
    analyze(inbox, root)
    path = root / "videos" / f"{video_id}.parquet"
    row = pq.read_table(path)
    evil = {"absolute": str(tmp_path / "evil"), "relative": "../../evil"}[way]
    pq.write_table(row.set_column(0, row.schema[0], [[evil]]), path)
    assert KnownSources(open_results(root)).look() == {}
    assert len(analyze(inbox, root, max_fps=50).done) == 1
    assert_is_whole(root, videos=1)
    elsewhere = {path.name for path in tmp_path.iterdir()} - {"inbox", "results"}
    assert elsewhere == set()
    record_property("figures", f"1 file: {len(elsewhere)} written elsewhere, its video done")
