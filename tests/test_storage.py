"""Storage: the same code for a folder and a bucket; what is unfinished is never seen."""

import contextlib
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from s3_server import forget_stores, in_trouble

from ferflow import storage
from ferflow.errors import ConfigError
from ferflow.sources import KnownSources, find_videos, open_results
from ferflow.storage import Results, fetched, list_files, part_file, place, stat_file, workspace

ROOT = Path(__file__).parents[1]


@pytest.fixture(params=["folder", "bucket"])
def folder(request, tmp_path) -> Path:
    return tmp_path if request.param == "folder" else request.getfixturevalue("bucket")


def test_a_file_appears_complete_or_not_at_all(folder):
    target = folder / "videos" / "ä b#?.parquet"
    with part_file(target, folder=folder / ".parts") as part:
        part.write_bytes(b"half")
        assert not target.exists()
        part.write_bytes(b"whole")
    assert target.read_bytes() == b"whole"
    with contextlib.suppress(ZeroDivisionError), part_file(target, folder=folder / ".parts") as part:
        part.write_bytes(b"other")
        raise ZeroDivisionError
    assert target.read_bytes() == b"whole"
    assert not part.exists()


@pytest.mark.fault("the power is cut just after a result has got its name")
def test_a_file_has_its_name_once_its_bytes_are_on_the_disk(tmp_path, monkeypatch):
    """Seen to fail: after a power cut the disk has the name and none of the bytes."""
    on_disk: set[int] = set()
    sync, rename = os.fsync, os.replace

    def note(descriptor: int) -> None:
        sync(descriptor)
        on_disk.add(os.fstat(descriptor).st_ino)

    def check(part: Path, target: Path) -> None:
        assert Path(part).stat().st_ino in on_disk
        rename(part, target)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(os, "replace", check)
    with part_file(tmp_path / "a.parquet", folder=tmp_path / ".parts") as part:
        part.write_bytes(b"whole")
    assert (tmp_path / "a.parquet").read_bytes() == b"whole"


def test_a_large_file_goes_to_a_bucket_and_comes_back(bucket):
    content = os.urandom(1 << 20) * 120
    with part_file(bucket / "large.mp4") as part:
        part.write_bytes(content)
    with fetched(bucket / "large.mp4") as copy:
        assert copy.read_bytes() == content
        assert copy.name == "large.mp4"
    assert not copy.exists()


def test_a_listing_tells_length_and_change_without_reading(folder):
    for name in ("a.mp4", "deep/er/b.mp4"):
        with part_file(folder / name) as part:
            part.write_bytes(b"12345")
    before = {file.path: file for file in list_files(folder)}
    assert list(before) == [folder / "a.mp4", folder / "deep" / "er" / "b.mp4"]
    assert {file.size_bytes for file in before.values()} == {5}
    assert all(abs(file.modified_at - time.time()) < 60 for file in before.values())
    assert all(stat_file(path).tag == file.tag for path, file in before.items())
    with part_file(folder / "a.mp4") as part:
        part.write_bytes(b"54321")
    after = {file.path: file.tag for file in list_files(folder)}
    assert [path.name for path in after if after[path] != before[path].tag] == ["a.mp4"]


def test_two_videos_of_one_name_never_share_a_picture(tmp_path):
    """Seen to fail: with half of the id in the name, two that have this half in common had one file."""
    results = Results(tmp_path)
    one, other = "0123456789abcdef", "01234567fedcba98"
    assert results.annotated("a.mp4", one) != results.annotated("a.mp4", other)
    assert results.timeline("a.mp4", one) != results.timeline("a.mp4", other)
    longest = "a" * 300 + ".mp4"
    assert all(len(path(longest, one).name) <= 255 for path in (results.annotated, results.timeline))


def test_a_row_names_files_within_the_results_and_no_others(tmp_path):
    results, outside = Results(tmp_path / "results"), tmp_path / "private.png"
    timelines = results.root / "timelines"
    timelines.mkdir(parents=True)
    for path in (outside, timelines / "a.png"):
        path.write_bytes(b"PNG")
    (timelines / "same.png").symlink_to("a.png")
    (timelines / "out.png").symlink_to(outside)
    (timelines / "loop.png").symlink_to("loop.png")
    (timelines / "folder").symlink_to(tmp_path)
    os.mkfifo(timelines / "pipe.png")
    for name in ("a.png", "same.png"):
        assert results.named(f"timelines/{name}") == timelines / name
    others = ["out.png", "folder/private.png", "loop.png", "pipe.png", "gone.png", "a\0.png", "../../private.png"]
    for named in (*[f"timelines/{name}" for name in others], "../private.png", str(outside), "timelines", "", None):
        assert results.named(named) is None, named


def test_a_row_names_objects_below_the_results_of_a_bucket_and_no_others(bucket):
    results = Results(bucket / "results")
    assert results.named("timelines/a.png") == bucket / "results" / "timelines" / "a.png"
    for named in ("timelines/../../a.png", "../a.png", "/a.png", "memory://a.png", "s3://other/a.png"):
        assert results.named(named) is None, named


def test_videos_are_found_in_a_folder_and_in_a_bucket_alike(folder):
    names = ["a.mp4", "deep/b.MOV", ".hidden/c.mp4", "~d.mp4", "e.txt", "f.mp4.part"]
    for name in names:
        with part_file(folder / "inbox" / name) as part:
            part.write_bytes(b"x")
    results = open_results(folder / "inbox" / "results")
    with part_file(results.annotated("a.mp4", "0123456789")) as part:
        part.write_bytes(b"x")
    assert find_videos([folder / "inbox"]) == [folder / "inbox" / "a.mp4", folder / "inbox" / "deep" / "b.MOV"]
    assert find_videos([folder / "inbox" / "e.txt"]) == [folder / "inbox" / "e.txt"]


def test_what_a_killed_process_left_unfinished_is_removed_by_the_next(tmp_path):
    code = (
        "import time, pathlib, sys; from ferflow.storage import part_file\n"
        "with part_file(pathlib.Path(sys.argv[1], 't', 'x'), folder=pathlib.Path(sys.argv[1], '.parts')) as part:\n"
        "    part.write_bytes(b'half'); print('ready', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT)
    assert process.stdout is not None
    process.stdout.readline()
    (left,) = tmp_path.glob(".parts/*/.*.part")
    workspace(tmp_path / ".parts")
    assert left.exists(), "its process lives"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    check = "import pathlib, sys; from ferflow.storage import workspace; workspace(pathlib.Path(sys.argv[1], '.parts'))"
    subprocess.run([sys.executable, "-c", check, str(tmp_path)], check=True, cwd=ROOT)
    assert not left.parent.exists()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("nosuch://bucket/inbox", r"nosuch:// cannot be opened .*; name a folder or s3://\.\.\."),
        ("s3://key:secret@bucket/inbox", "leave the key out of the address"),
        ("s3://key:secr/secret@bucket/inbox", "leave the key out of the address"),
    ],
)
def test_an_address_that_nothing_can_open_is_answered_with_a_sentence(text, sentence):
    with pytest.raises(ConfigError, match=sentence) as caught:
        place(text)
    assert "secret" not in str(caught.value)


def test_a_store_that_does_not_answer_is_a_fault_that_may_pass(monkeypatch):
    """As a network disk's: who knows those, as the retries of tasks do, knows it too."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    once = {"retries": {"total_max_attempts": 1}}
    monkeypatch.setattr(storage, "_S3_OPTIONS", {"config_kwargs": once, "use_listings_cache": False})
    # As another process gets it.
    path: Any = pickle.loads(pickle.dumps(place("s3://bucket/folder")))
    path.fs.retries = 1
    for use in (path.read_bytes, lambda: path.write_bytes(b""), lambda: list(list_files(path)), path.unlink):
        with pytest.raises(OSError, match="Could not connect"):
            use()


def test_a_store_that_cannot_hold_claims_is_refused(bucket, monkeypatch):
    open_results(bucket / "first")
    assert list((bucket / "first" / ".claims").glob("*")) == []
    write = bucket.fs.pipe_file
    monkeypatch.setattr(bucket.fs, "pipe_file", lambda path, value, mode="overwrite": write(path, value))
    with pytest.raises(ConfigError, match="two processes could not be kept from the same video"):
        open_results(bucket / "second")


def test_a_missing_bucket_is_one_clear_sentence(bucket):
    with pytest.raises(ConfigError, match=r"s3://nobody-made-this/inbox: there is no such bucket; check the name"):
        find_videos([place("s3://nobody-made-this/inbox")])
    with pytest.raises(ConfigError, match="there is no such bucket"):
        open_results(place("s3://nobody-made-this/results"))


def test_a_named_file_is_one_request_however_many_lie_beside_it(bucket, s3_server, monkeypatch):
    """Seen to fail: the bucket's whole top level was listed for every source."""
    for number in range(5):
        (bucket / f"{number}.mp4").write_bytes(b"x")
    turns = Counter[str]()

    def count() -> Iterator[str]:
        while True:
            turns["requests"] += 1
            yield ""

    with in_trouble(s3_server, count()) as (url, _):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        forget_stores()
        inbox = place(str(bucket))
        named = [inbox / f"{number}.mp4" for number in range(5)]
        assert find_videos(named) == named
        assert turns["requests"] == len(named)
        assert find_videos([inbox]) == named
        assert turns["requests"] == len(named) + 2, "is it a folder, and what is in it"


def test_a_key_for_one_prefix_can_use_that_prefix(bucket, s3_server, monkeypatch):
    """Seen to fail: such a key may not list the bucket, and was refused."""
    (bucket / "study" / "inbox" / "a.mp4").write_bytes(b"x")
    (bucket / "private.mp4").write_bytes(b"x")
    name = bucket.path.strip("/")
    guest = {"Effect": "Allow", "Principal": {"AWS": ["arn:aws:iam:::user/guest"]}}
    of_prefix = {"StringLike": {"s3:prefix": "study/*"}}
    use, ask = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject"], ["s3:ListBucket"]
    statements = [
        # Ceph asks for the bucket itself where several are deleted.
        guest | {"Action": use, "Resource": [f"arn:aws:s3:::{name}/study/*", f"arn:aws:s3:::{name}"]},
        guest | {"Action": ask, "Resource": f"arn:aws:s3:::{name}", "Condition": of_prefix},
    ]
    policy = json.dumps({"Version": "2012-10-17", "Statement": statements})
    bucket.fs.call_s3("put_bucket_policy", Bucket=name, Policy=policy)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.guest[0])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.guest[1])
    forget_stores()
    root = place(str(bucket))
    assert find_videos([root / "study" / "inbox"]) == [root / "study" / "inbox" / "a.mp4"]
    results = open_results(root / "study" / "results")
    assert results.table("videos").exists()
    assert KnownSources(results).look() == {}
    for refused in (root, root / "private.mp4", root / "elsewhere"):
        with pytest.raises(ConfigError, match="the store refuses the key that it was given"):
            find_videos([refused])


def test_a_wrong_or_missing_key_and_a_silent_store_are_clear_sentences(bucket, s3_server, tmp_path):
    def said(**environment: str) -> str:
        keys = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        command = [
            sys.executable,
            "-m",
            "flows.cli",
            "analyze",
            str(bucket),
            "--results",
            str(tmp_path),
            "--no-prefect",
        ]
        done = subprocess.run(
            command,
            env=keys | {"HOME": str(tmp_path)} | environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        return done.stderr

    wrong = said(**s3_server.environment | {"AWS_SECRET_ACCESS_KEY": "wrong-secret"})
    assert re.search("refuses the key that it was given.* AWS_SECRET_ACCESS_KEY", wrong)
    assert "wrong-secret" not in wrong
    assert "no key for this store was found" in said(
        AWS_ENDPOINT_URL=s3_server.url, AWS_DEFAULT_REGION="us-east-1", AWS_EC2_METADATA_DISABLED="true"
    )
    assert "the store does not answer" in said(**s3_server.environment | {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"})
