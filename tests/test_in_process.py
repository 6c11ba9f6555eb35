"""One sequence for every video, driven by threads; what one video meets does not reach the others."""

import dataclasses
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from ferflow.config import Settings
from ferflow.errors import ModelError, SourceError, VideoError
from ferflow.records import VideoSummary
from ferflow.sources import Job, find_videos, open_results
from ferflow.storage import Results
from flows import each_video
from flows.each_video import Stages, process_each
from flows.in_process import analyze_in_process
from flows.watch_runs import fates_of
from models.store import ModelStore
from models.warm import version_in_use, warm_classifier


class Heard:
    """A listener that keeps what it hears."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, str, int, int | None]] = []
        self.summaries: dict[str, VideoSummary] = {}
        self.unchanged: set[str] = set()
        self.copies: list[str] = []
        self.elsewhere_names: list[str] = []

    def stage(self, job: Job, name: str, done: int, expected: int | None) -> None:
        self.stages.append((job.source.name, name, done, expected))

    def elsewhere(self, job: Job) -> None:
        self.elsewhere_names.append(job.source.name)

    def copied(self, job: Job) -> None:
        self.copies.append(job.source.name)

    def finished(self, job: Job, summary: VideoSummary) -> None:
        assert job.source.name not in self.summaries, "told twice"
        self.summaries[job.source.name] = summary
        if job.earlier is not None:
            self.unchanged.add(job.source.name)


@pytest.fixture
def inbox(make_video, astronaut, tmp_path) -> Path:
    folder = tmp_path / "inbox"
    make_video(folder / "first.mp4", frame_count=5, image=astronaut)
    make_video(folder / "second.mp4", frame_count=4, image=np.ascontiguousarray(astronaut[:, ::-1]))
    (folder / "third.mp4").write_bytes((folder / "first.mp4").read_bytes())
    (folder / "broken.mp4").write_text("this is no video")
    return folder


def analyze(inbox: Path, results: Results, *, workers: int = 2, force: bool = False, **settings: object) -> Heard:
    heard = Heard()
    analyze_in_process(
        find_videos([inbox]),
        results,
        settings=Settings.model_validate(settings),
        force=force,
        workers=workers,
        listener=heard,
    )
    return heard


def test_a_folder_is_analysed_and_a_broken_file_recorded(inbox, tmp_path):
    results = open_results(tmp_path / "results")
    heard = analyze(inbox, results)
    assert {name: summary.status for name, summary in heard.summaries.items()} == {
        "first.mp4": "done",
        "second.mp4": "done",
        "broken.mp4": "failed",
    }
    assert heard.summaries["broken.mp4"].error == "this is a text file, not a video, whatever its name says."
    assert heard.copies == ["third.mp4"]
    assert heard.summaries["first.mp4"].face_count == 5
    assert pq.ParquetDataset(results.table("faces")).read().num_rows == 9
    assert ("first.mp4", "faces", 5, 5) in heard.stages
    assert ("second.mp4", "drawing", 4, 4) in heard.stages


def test_a_second_run_does_nothing_and_force_does_all(inbox, tmp_path):
    results = open_results(tmp_path / "results")
    analyze(inbox, results, annotate=False)
    files = {path: path.stat().st_mtime_ns for path in results.root.rglob("*") if path.is_file()}
    heard = analyze(inbox, results, annotate=False)
    assert heard.unchanged == {"first.mp4", "second.mp4", "broken.mp4"}
    assert {path: path.stat().st_mtime_ns for path in results.root.rglob("*") if path.is_file()} == files
    assert analyze(inbox, results, annotate=False, force=True).unchanged == set()


def test_a_missing_model_is_told_before_anything_is_analysed(inbox, tmp_path):
    results = open_results(tmp_path / "results")
    with pytest.raises(ModelError, match="no-such-model"):
        analyze(inbox, results, model="no-such-model")
    assert [path.name for path in results.root.rglob("*.parquet")] == ["columns.parquet"] * 3


@pytest.fixture
def store(two_models, tmp_path, monkeypatch) -> ModelStore:
    """A store of two models that the run knows as the user's."""
    monkeypatch.setenv("FERFLOW_MODELS", str(tmp_path / "store"))
    for model in two_models:
        shutil.copytree(model, tmp_path / "store" / model.name)
    return ModelStore()


def versions_of_rows(results: Results) -> dict[str, set[str]]:
    """By a video's name, the versions that its faces, if it has any, and its row name."""
    found: dict[str, set[str]] = {}
    for table in ("faces", "videos"):
        rows = pq.ParquetDataset(results.table(table)).read(["source", "model_version"]).to_pylist()
        for row in rows:
            found.setdefault(Path(row["source"]).name, set()).add(row["model_version"])
    return found


def test_a_promotion_is_picked_up_at_the_next_video(inbox, store, two_models, tmp_path):
    old, new = (model.name for model in two_models)
    results = open_results(tmp_path / "results")
    store.promote(old)
    assert set(analyze(inbox, results, annotate=False).summaries) == {"broken.mp4", "first.mp4", "second.mp4"}
    assert set.union(*versions_of_rows(results).values()) == {old}

    class Promoting(Heard):
        """Takes the new model into use while the first video is looked at."""

        def stage(self, job: Job, name: str, done: int, expected: int | None) -> None:
            if job.source.name == "first.mp4" and name == "faces" and done > 1 and store.in_use().name == old:
                store.promote(new)

    videos = [inbox / name for name in ("first.mp4", "second.mp4", "third.mp4", "broken.mp4")]
    analyze_in_process(
        videos,
        results,
        settings=Settings(annotate=False, max_fps=5),
        force=False,
        workers=1,
        listener=(heard := Promoting()),
    )
    assert heard.unchanged == set()
    assert versions_of_rows(results) == {"first.mp4": {old}, "second.mp4": {new}, "broken.mp4": {new}}

    heard = analyze(inbox, results, annotate=False, max_fps=5)
    assert heard.unchanged == {"second.mp4", "broken.mp4"}, "what the old one did is done again, and no more"
    assert versions_of_rows(results) == {"first.mp4": {new}, "second.mp4": {new}, "broken.mp4": {new}}
    store.rollback()
    assert analyze(inbox, results, annotate=False, max_fps=5).unchanged == set()
    assert set.union(*versions_of_rows(results).values()) == {old}


def test_a_model_that_was_replaced_in_its_folder_is_loaded_anew(two_models, tmp_path):
    first, second = (model.name for model in two_models)
    folder = Path(shutil.copytree(two_models[0], tmp_path / "mine"))
    classifier = warm_classifier(str(folder))
    assert warm_classifier(str(folder)) is classifier
    assert classifier.version == version_in_use(str(folder)) == first
    shutil.rmtree(folder)
    shutil.copytree(two_models[1], folder)
    assert warm_classifier(str(folder)).version == version_in_use(str(folder)) == second


def test_a_promoted_model_that_was_damaged_stops_the_run_before_it_begins(inbox, store, two_models, tmp_path):
    store.promote(two_models[0].name)
    (store.in_use() / "model.tflite").write_bytes(b"damaged")
    results = open_results(tmp_path / "results")
    with pytest.raises(ModelError, match=r"not the file that model\.json describes"):
        analyze(inbox, results)
    assert [path.name for path in results.root.rglob("*.parquet")] == ["columns.parquet"] * 3


# From here on the stages are fakes: what is looked at is how videos are driven through them.


@pytest.fixture
def results(tmp_path) -> Results:
    return open_results(tmp_path / "results")


class FakeStages:
    """Stages that write a video's row as if it were broken, because that takes no model, and keep their order."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.faults: dict[str, BaseException] = {}

    def analyze(self, job, results, settings, progress) -> Path:
        self.calls.append(f"analyze {job.source.name}")
        if fault := self.faults.get(job.source.name):
            raise fault
        progress(1, 1)
        return job.source

    def annotate(self, job, faces_path, results, settings, progress) -> Path:
        self.calls.append(f"annotate {job.source.name}")
        return job.source

    def summarize(self, job, faces_path, annotated_path, results, settings) -> Path:
        self.calls.append(f"summarize {job.source.name}")
        raise VideoError(f"{job.source}: is a fake.")

    def run(self, jobs: Iterator[Job], results: Results, *, workers: int = 1, **settings: object) -> Heard:
        heard = Heard()
        process_each(
            jobs,
            results,
            Stages(self.analyze, self.annotate, self.summarize),
            settings=Settings.model_validate(settings),
            workers=workers,
            listener=heard,
        )
        return heard


def job(name: str, video_id: str) -> Job:
    return Job(Path(name), Path(name), f"{video_id.encode().hex():0>16}", None, "fake", None)


def jobs(*names: str) -> Iterator[Job]:
    return (job(name, f"id-of-{name}") for name in names)


def test_a_video_is_finished_before_the_next_is_begun(results):
    stages = FakeStages()
    stages.run(jobs("a", "b", "c"), results)
    assert stages.calls == [f"{stage} {name}" for name in "abc" for stage in ("analyze", "annotate", "summarize")]


def test_a_backlog_is_asked_for_as_it_is_worked_off(results):
    asked: list[int] = []
    stages = FakeStages()
    most_waiting = 0

    def backlog() -> Iterator[Job]:
        nonlocal most_waiting
        for number in range(200):
            asked.append(number)
            begun = sum(call.startswith("analyze") for call in stages.calls)
            most_waiting = max(most_waiting, len(asked) - begun)
            yield job(str(number), str(number))

    heard = stages.run(backlog(), results, workers=4)
    assert len(heard.summaries) == 200
    assert most_waiting <= 4


def test_several_videos_are_worked_on_at_a_time(results):
    together = threading.Barrier(3, timeout=30)
    stages = FakeStages()
    analyze = stages.analyze

    def meet(*arguments) -> Path:
        together.wait()
        return analyze(*arguments)

    stages.analyze = meet
    assert len(stages.run(jobs("a", "b", "c"), results, workers=3).summaries) == 3


def test_a_video_that_another_run_has_taken_over_is_left_to_it(results):
    lost: list[str] = []
    stages = FakeStages()

    def watched() -> Iterator[Job]:
        for name in "abc":
            yield dataclasses.replace(job(name, name), is_lost=lambda name=name: name in lost)

    analyze = stages.analyze

    def lose(job: Job, *arguments) -> Path:
        if job.source.name == "b":
            lost.append("b")
        return analyze(job, *arguments)

    stages.analyze = lose
    heard = stages.run(watched(), results)
    assert heard.elsewhere_names == ["b"]
    assert set(heard.summaries) == {"a", "c"}
    assert "summarize b" not in stages.calls


def test_a_fault_of_a_video_that_another_run_has_taken_over_is_not_recorded(results):
    """Seen to fail: there was a failed row beside the other run's done one, or instead of it."""
    lost: list[str] = []
    stages = FakeStages()

    def lose(job: Job, *_: object) -> Path:
        lost.append(job.source.name)
        raise VideoError(f"{job.source}: is damaged.")

    stages.analyze = lose
    heard = stages.run(iter([dataclasses.replace(job("a", "a"), is_lost=lambda: "a" in lost)]), results)
    assert (heard.elsewhere_names, heard.summaries) == (["a"], {})
    assert len(pd.read_parquet(results.table("videos"))) == 0


def test_a_file_that_moved_away_takes_nothing_from_what_another_run_has_finished(results):
    stages = FakeStages()
    stages.run(jobs("a"), results)
    before = pd.read_parquet(results.table("videos"))
    stages.faults["a"] = SourceError("a: there is no such file.")
    assert stages.run(jobs("a"), results).summaries["a"].error == "there is no such file."
    assert pd.read_parquet(results.table("videos")).equals(before)


def test_copies_of_a_file_that_vanished_are_left_to_be_tried_again(results):
    """Seen to fail: they were called failed, and moved aside, without having been looked at."""
    stages = FakeStages()
    stages.faults["a"] = SourceError("a: there is no such file.")
    first, copy = job("a", "id"), dataclasses.replace(job("b", "id"), copy_of=Path("a"))
    heard = stages.run(iter([first, copy]), results)
    assert fates_of([(first, heard.summaries["a"]), (copy, None)]) == {}


def test_no_copy_is_drawn_that_is_not_wanted(results):
    stages = FakeStages()
    stages.run(jobs("a"), results, annotate=False)
    assert stages.calls == ["analyze a", "summarize a"]


def test_an_error_that_nobody_foresaw_stops_its_video_only(results):
    stages = FakeStages()
    stages.faults["b"] = ZeroDivisionError("nobody thought of this")
    with pytest.raises(ExceptionGroup) as raised:
        stages.run(jobs("a", "b", "c"), results)
    (error,) = raised.value.exceptions
    assert error is stages.faults["b"]
    assert str(raised.value).startswith("b: an error that nobody foresaw")
    sources = set(pd.read_parquet(results.table("videos"))["source"])
    assert sources == {"a", "c"}, "the next run tries b again"


def test_an_error_in_planning_is_not_taken_for_one_of_a_video(results):
    def backlog() -> Iterator[Job]:
        yield from jobs("a")
        raise ZeroDivisionError("nobody thought of this")

    with pytest.raises(ZeroDivisionError):
        FakeStages().run(backlog(), results)


@pytest.mark.parametrize("fault", [OSError("no space left on device"), ModelError("the model is damaged")])
def test_a_fault_of_the_machine_stops_the_run(fault, results):
    stages = FakeStages()
    stages.faults["b"] = fault
    with pytest.raises(type(fault)):
        stages.run(jobs("a", "b", "c"), results)
    assert "analyze c" not in stages.calls


def test_what_is_under_way_stops_with_the_run(results):
    stages = FakeStages()
    stages.faults["a"] = OSError("no space left on device")
    begun = threading.Event()
    overlooked = False
    analyze = stages.analyze

    def endless(job, results, settings, progress) -> Path:
        nonlocal overlooked
        if job.source.name == "a":
            assert begun.wait(30)
            return analyze(job, results, settings, progress)
        begun.set()
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            progress(1, None)
        overlooked = True
        return job.source

    stages.analyze = endless
    with pytest.raises(OSError, match="no space"):
        stages.run(jobs("a", "b"), results, workers=2)
    assert not overlooked


def test_an_interrupt_in_a_stage_ends_the_run(results):
    stages = FakeStages()
    stages.faults["a"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        stages.run(jobs("a", "b"), results)
    assert stages.calls == ["analyze a"]


def test_no_more_videos_at_a_time_than_a_container_has_processors(monkeypatch, tmp_path):
    share = tmp_path / "cpu.max"
    monkeypatch.setattr(each_video, "_CPU_SHARE", share)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    assert each_video.default_workers() == 8
    for text, count in (("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1), ("900000 100000", 8)):
        share.write_text(f"{text}\n")
        assert each_video.default_workers() == count, text
