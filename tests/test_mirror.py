"""A bucket's prefix as a folder."""

import pytest

from ferflow.errors import ConfigError
from ferflow.mirror import Mirror
from ferflow.storage import list_files, place


def contents(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*[!.]*.txt") if path.is_file()}


def test_a_folder_follows_its_bucket(bucket, tmp_path):
    (bucket / "a.txt").write_bytes(b"1")
    (bucket / "deep" / "b.txt").write_bytes(b"2")
    mirror = Mirror(bucket, tmp_path)
    assert contents(mirror.pull()) == {"a.txt": b"1", "deep/b.txt": b"2"}
    unchanged = (mirror.folder / "a.txt").stat().st_mtime_ns
    (bucket / "deep" / "b.txt").unlink()
    (bucket / "c.txt").write_bytes(b"3")
    (mirror.folder / "own.txt").write_bytes(b"own")
    assert contents(Mirror(bucket, tmp_path).pull()) == {"a.txt": b"1", "c.txt": b"3", "own.txt": b"own"}
    assert (mirror.folder / "a.txt").stat().st_mtime_ns == unchanged, "not fetched again"
    assert not (mirror.folder / "deep").exists()


def test_what_is_sent_is_not_fetched_again(bucket, tmp_path):
    mirror = Mirror(bucket, tmp_path)
    (mirror.pull() / "a.txt").write_bytes(b"1")
    mirror.push([mirror.folder / "a.txt"])
    assert [file.path.read_bytes() for file in list_files(bucket)] == [b"1"]
    before = (mirror.folder / "a.txt").stat().st_mtime_ns
    mirror.pull()
    assert (mirror.folder / "a.txt").stat().st_mtime_ns == before


def test_what_makes_others_count_comes_last(bucket, tmp_path):
    mirror = Mirror(bucket, tmp_path, last=("model.json", "list.jsonl"))
    names = ["list.jsonl", "m/model.json", "m/weights", "z"]
    assert mirror._in_order(names) == ["m/weights", "z", "m/model.json", "list.jsonl"]


def test_a_recent_look_is_good_enough(bucket, tmp_path):
    mirror = Mirror(bucket, tmp_path)
    mirror.pull()
    (bucket / "a.txt").write_bytes(b"1")
    assert contents(mirror.pull(older_than_seconds=60)) == {}
    assert contents(mirror.pull()) == {"a.txt": b"1"}


def test_a_missing_bucket_is_a_sentence(bucket, tmp_path):
    with pytest.raises(ConfigError, match="there is no such bucket"):
        Mirror(place("s3://nobody-made-this/labelled"), tmp_path).pull()
