"""The same run with its stages on a Ray cluster: a real one, of this machine."""

import contextlib
import importlib.util
import os

import numpy as np
import pyarrow.parquet as pq
import pytest
from prefect import task

from ferflow.config import Settings
from ferflow.errors import ConfigError
from ferflow.sources import open_results, plan_jobs
from flows.analyze_videos import analyze_videos
from flows.each_video import Stages
from flows.on_ray import LOCAL, on_ray

without_ray = importlib.util.find_spec("ray") is None


def on_a_cluster(test):
    """Mark a test that needs Ray, which leaves files and processes to the end of its own process."""
    for warning in ("ResourceWarning", "FutureWarning", "DeprecationWarning"):
        test = pytest.mark.filterwarnings(f"ignore::{warning}")(test)
    test = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")(test)
    skips = without_ray and not os.environ.get("CI")
    return pytest.mark.skipif(skips, reason="Ray is an extra: `uv sync --extra ray`")(test)


@on_a_cluster
def test_a_run_on_a_ray_cluster_gives_the_same_rows(make_video, astronaut, on_server, tmp_path):
    for number in range(2):
        image = np.ascontiguousarray(np.roll(astronaut, 9 * number, axis=1))
        make_video(tmp_path / "inbox" / f"{number}.mp4", frame_count=4, image=image)
    (tmp_path / "inbox" / "text.mp4").write_text("not a video")

    def rows(where: str, **options: object) -> list[dict[str, object]]:
        results = tmp_path / where
        state = analyze_videos([str(tmp_path / "inbox")], str(results), return_state=True, **options)
        assert state.message.startswith("2 analysed, 0 already done, 1 failed"), state.message
        assert len(list((results / "annotated").iterdir())) == 2
        return sorted(pq.read_table(results / "faces").to_pylist(), key=lambda row: (row["source"], row["frame_index"]))

    assert rows("there", ray=LOCAL, workers=2) == rows("here")


@on_a_cluster
def test_a_stage_that_ends_in_a_timeout_there_ends_here_too(make_video, on_server, tmp_path):
    video = make_video(tmp_path / "a.mp4", frame_count=1)
    results = open_results(tmp_path / "results")
    (job,) = plan_jobs([video], results, model_version=lambda: "x", settings=Settings())

    @task
    def never(job, results, settings):
        raise TimeoutError("the disk did not answer")

    with (
        contextlib.closing(job),
        on_ray(LOCAL, Stages(never, print, print)) as stages,
        pytest.raises(TimeoutError, match="the disk did not answer"),
    ):
        stages.analyze(job, results, Settings(), lambda done, expected: None)


def test_without_ray_a_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "prefect_ray", None)
    with (
        pytest.raises(ConfigError, match=r"Ray is not installed here; `uv sync --extra ray` adds it"),
        on_ray("ray://head:10001", Stages(print, print, print)),
    ):
        pass
