"""The command as a person types it: what it says, what it leaves, how it ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from flows.watch_command import _say


def ferflow(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flows.cli", *map(str, arguments)]
    env = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"} | environment
    return subprocess.run(command, capture_output=True, check=False, text=True, env=env)


@pytest.fixture(scope="module")
def inbox(make_video, astronaut, tmp_path_factory) -> Path:
    """A folder as a person leaves it: two videos, one of them twice, broken ones, and other files."""
    folder = tmp_path_factory.mktemp("users") / "Meine Videos"
    make_video(folder / "portrait.mp4", frame_count=12, fps=12, image=astronaut)
    (folder / "copy of portrait.mp4").write_bytes((folder / "portrait.mp4").read_bytes())
    make_video(folder / "leerer Raum.mkv", frame_count=5)
    (folder / "empty.mp4").touch()
    (folder / "letter.mp4").write_text("Dear all,\n" * 50)
    (folder / "notes.txt").write_text("not a video")
    return folder


@pytest.fixture(scope="module")
def first_run(inbox, tmp_path_factory) -> tuple[subprocess.CompletedProcess[str], Path]:
    results = tmp_path_factory.mktemp("results")
    return ferflow("analyze", inbox, "--results", results), results


def test_one_bad_video_does_not_stop_the_others_and_the_exit_status_says_so(first_run):
    run, results = first_run
    assert run.returncode == 1
    videos = pd.read_parquet(results / "videos")
    names = videos.source.map(lambda source: Path(source).name)
    assert dict(zip(names, videos.status, strict=True)) == {
        "copy of portrait.mp4": "done",
        "leerer Raum.mkv": "done",
        "empty.mp4": "failed",
        "letter.mp4": "failed",
    }
    errors = dict(zip(names, videos.error, strict=True))
    assert errors["empty.mp4"] == "the file is empty (0 bytes); copy or record it again."
    assert errors["letter.mp4"] == "this is a text file, not a video, whatever its name says."


def test_the_command_says_what_became_of_each_video_and_nothing_else(first_run):
    run, _ = first_run
    lines = run.stderr.splitlines()
    assert len(lines) == 5, run.stderr
    assert all(line.startswith("[") for line in lines)
    assert any("copy of portrait.mp4: 12 frames, 12 faces, 1 track, mostly happy" in line for line in lines)
    assert any("portrait.mp4: the same content as copy of portrait.mp4" in line for line in lines)
    assert lines[-1].startswith("[5/5] ")
    assert any("empty.mp4: failed: the file is empty" in line for line in lines)
    assert run.stdout.startswith("2 analysed, 0 already done, 2 failed, 1 copy of others.")


def test_nothing_in_the_inbox_is_touched(first_run, inbox):
    names = sorted(path.name for path in inbox.iterdir())
    assert names == ["copy of portrait.mp4", "empty.mp4", "leerer Raum.mkv", "letter.mp4", "notes.txt", "portrait.mp4"]


def test_a_second_run_does_nothing_and_force_does_it_again(first_run, inbox):
    _, results = first_run
    before = pd.read_parquet(results / "videos").set_index("video_id").processed_at
    again = ferflow("analyze", inbox, "--results", results)
    assert again.returncode == 1
    assert again.stdout.startswith("0 analysed, 2 already done, 2 failed, 1 copy of others.")
    assert pd.read_parquet(results / "videos").set_index("video_id").processed_at.equals(before)
    forced = ferflow("analyze", inbox / "portrait.mp4", "--results", results, "--force")
    assert forced.returncode == 0
    assert forced.stdout.startswith("1 analysed, 0 already done, 0 failed.")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["gone.mp4"], "gone.mp4: there is no such file or folder; check the name."),
        ([".", "--config", "gone.toml"], "gone.toml: the settings file cannot be read (No such file or directory)."),
        ([".", "--max-fps", "-3"], "max_fps = -3.0 has no meaning"),
        ([".", "--model", "best"], "best: there is no emotion model of this name or in this folder; installed: "),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(first_run, inbox, tmp_path, arguments, says):
    sources = [inbox / name if name == "." else name for name in arguments]
    run = ferflow("analyze", *sources, "--results", tmp_path / "results")
    assert run.returncode == 2
    assert says in run.stderr
    assert "Traceback" not in run.stderr
    assert len(run.stderr.splitlines()) == 1


@pytest.mark.fault("a name that steers the terminal, in what is said of it")
def test_what_is_said_of_a_name_does_not_steer_the_terminal(tmp_path, capsys):
    """Seen to fail: the terminal was cleared."""
    name, shown = "a\x1b[2J\nb.mp4", r"a\x1b[2J\nb.mp4"
    run = ferflow("analyze", tmp_path / name, "--results", tmp_path / "results")
    assert run.stderr == f"ferflow: {tmp_path}/{shown}: there is no such file or folder; check the name.\n"
    os.mkfifo(tmp_path / name)
    run = ferflow("analyze", tmp_path, "--results", tmp_path / "results")
    assert run.stderr.splitlines()[0].startswith(f"{tmp_path}/{shown}: this is a pipe")
    assert run.stderr.replace("\n", "").isprintable()
    _say(f"{name}: it cannot be moved.")
    assert capsys.readouterr().err == f"ferflow: {shown}: it cannot be moved.\n"


def test_a_wrong_key_in_a_settings_file_is_named_with_the_right_one(inbox, tmp_path):
    settings = tmp_path / "mine.toml"
    settings.write_text("max_fsp = 5\n")
    run = ferflow("analyze", inbox, "--config", settings, "--results", tmp_path / "results")
    assert run.returncode == 2
    assert "there is no setting max_fsp; did you mean max_fps?" in run.stderr


def test_an_interrupted_run_leaves_nothing_half_done_and_goes_on_later(make_video, astronaut, tmp_path):
    long = make_video(tmp_path / "inbox" / "long.mp4", frame_count=600, fps=30, image=astronaut)
    results = tmp_path / "results"
    command = [sys.executable, "-m", "flows.cli", "analyze", str(long), "--results", str(results), "--no-prefect"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    columns, parts = results / "segments" / "columns.parquet", results / ".parts"
    while not (columns.exists() and list(parts.glob("*/.*.part"))) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, messages = process.communicate(timeout=60)
    assert process.returncode == 130
    assert messages.splitlines()[-1].startswith("ferflow: stopped; finished videos are kept")
    assert "Traceback" not in messages
    assert pd.read_parquet(results / "faces").empty
    assert pd.read_parquet(results / "videos").empty
    assert list((results / ".parts").iterdir()) == []
    assert ferflow("analyze", long, "--results", results, "--max-fps", "2", "--no-annotate").returncode == 0
