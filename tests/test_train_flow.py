"""Training and retraining as a person starts them: the command, and the flows on a real Prefect server."""

import contextlib
import dataclasses
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from prefect_server import Server, end, eventually, without_prefect

from ferflow.emotions import EMOTIONS
from ferflow.errors import StoppedError
from flows.cli import main
from flows.pictures import page_of
from flows.train_emotion_model import train_emotion_model, train_on_server
from flows.training_report import describe_nothing_new
from flows.watch_labelled import watch_labelled
from models.emotion_classifier import read_description
from models.store import MODELS_VARIABLE, ModelStore
from training.checkpoint import Epoch
from training.dataset import load_splits
from training.fit import CHECKPOINT_FILE, Step, fit_network
from training.progress import Pace, describe_seconds, describe_step, hear_training
from training.recipe import load_recipe
from training.retrain import WORK_FOLDER
from training.retrain_settings import RetrainSettings, load_retrain_settings

ROOT = Path(__file__).parents[1]
EPOCHS = 5

# Keras 3.15 hands numpy 2.4 tensors whose __array__ takes no copy keyword.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FER2013's layout with seven patterns, one an emotion."""
    folder = tmp_path_factory.mktemp("patterns")
    rng = np.random.default_rng(0)
    patterns = [rng.integers(0, 256, (5, 5)).astype(np.uint8) for _ in EMOTIONS]
    for name, copies in (("train/{}/Training", 16), ("test/{}/PublicTest", 4), ("test/{}/PrivateTest", 4)):
        for emotion, pattern in zip(EMOTIONS, patterns, strict=True):
            for copy in range(copies):
                write_face(folder / f"{name.format(emotion)}_{copy}.png", pattern, rng)
    return folder


def write_face(path: Path, pattern: np.ndarray, rng: np.random.Generator) -> None:
    """A pattern with noise strong enough that no two pass for the same photo."""
    path.parent.mkdir(parents=True, exist_ok=True)
    grain = cv2.resize(rng.normal(0, 45, (16, 16)), (48, 48))
    cv2.imwrite(str(path), np.clip(cv2.resize(pattern, (48, 48)) + grain, 0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    text = (ROOT / "configs" / "smoke.toml").read_text()
    path = tmp_path_factory.mktemp("config") / "short.toml"
    # Crops of one size: for each, TensorFlow takes seconds to prepare itself.
    for name, value in (("epochs", EPOCHS), ("sizes_px", [48]), ("size_shares", [1.0])):
        text = re.sub(rf"^{name} = .+$", f"{name} = {value}", text, flags=re.MULTILINE)
    path.write_text(text)
    return path


@dataclasses.dataclass(frozen=True, slots=True)
class Trained:
    """A training that was killed and then gone on with on the server, which several tests look at."""

    out: Path
    killed_after: int
    said_before: str
    directory: Path
    run_id: str


@pytest.fixture(scope="module")
def trained(data: Path, config: Path, server: Server, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

    out = tmp_path_factory.mktemp("out") / "runs"
    command = [sys.executable, "-m", "flows.cli", "train", str(data), "--config", str(config), "--out", str(out)]
    environment = without_prefect()
    said = []
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            said.append(line)
            if line.startswith(f"epoch 2/{EPOCHS}: "):
                process.kill()
    assert process.returncode == -signal.SIGKILL, said
    with np.load(out / CHECKPOINT_FILE) as kept:
        killed_after = len(json.loads(str(kept["history"])))
    with temporary_settings({PREFECT_API_URL: server.url, PREFECT_HOME: server.environment["PREFECT_HOME"]}):
        state = train_emotion_model(str(data), str(config), str(out), return_state=True)
    assert state.is_completed(), state.message
    return Trained(out, killed_after, "".join(said), state.result(), server.last_run()["id"])


def test_a_training_killed_in_the_middle_ends_like_an_unbroken_one(
    trained: Trained, data: Path, config: Path, tmp_path: Path
) -> None:
    assert 2 <= trained.killed_after < EPOCHS
    unbroken: list[Epoch] = []
    fit_network(load_splits(data), load_recipe(config), tmp_path, on_epoch=unbroken.append)
    resumed = read_description(trained.directory).history
    assert [epoch["number"] for epoch in resumed] == list(range(1, EPOCHS + 1))
    for before, epoch in zip(unbroken, resumed, strict=True):
        assert epoch["train_loss"] == pytest.approx(before.train_loss, rel=0.02)
        assert epoch["validation_loss"] == pytest.approx(before.validation_loss, rel=0.05)


def test_without_a_terminal_a_training_says_what_it_found_and_a_line_an_epoch(trained: Trained) -> None:
    assert "train: 112 images used (angry 16, disgust 16, " in trained.said_before
    line = (
        rf"epoch 1/{EPOCHS}: loss \d\.\d+, accuracy [\d.]+ %; validation loss .*, accuracy .* %; \d+ s, \d+ min left\n"
    )
    assert re.search(line, trained.said_before)


def test_a_training_leaves_its_pictures_as_files_and_in_the_servers_page(trained: Trained, server: Server) -> None:
    pictures = sorted((trained.out / "figures").glob("*.png"))
    assert [path.stem for path in pictures] == ["confusion", "curves", "mistakes", "reliability"]
    page = artifacts(server, trained.run_id)["training-pictures"]
    assert page["type"] == "markdown"
    assert trained.directory.name in page["description"]
    shown = re.findall(r"!\[(\w+)\]\(data:image/png;base64,([^)]+)\)", page["data"])
    assert [name for name, _ in shown] == ["confusion", "curves", "mistakes", "reliability"]
    assert page["data"] == page_of(page["data"].split("\n\n###")[0], pictures)


def test_the_servers_page_shows_how_far_a_training_is_and_a_line_an_epoch(trained: Trained, server: Server) -> None:
    assert float(artifacts(server, trained.run_id)["training-progress"]["data"]) == 100
    wanted = {f"epoch {number}/{EPOCHS}" for number in range(trained.killed_after + 1, EPOCHS + 1)}

    def epochs() -> set[str]:
        logs = server.ask("logs/filter", logs={"flow_run_id": {"any_": [trained.run_id]}}, limit=200)
        return {log["message"].split(":")[0] for log in logs if log["message"].startswith("epoch ")}

    eventually(lambda: epochs() >= wanted, "the log")
    assert epochs() == wanted
    run = server.last_run()
    assert run["name"].startswith("train: patterns")
    assert f"{trained.directory.name}: " in run["state"]["message"]


def test_a_training_of_this_process_is_cancelled_and_goes_on_later(
    data: Path, config: Path, on_server: Server, tmp_path: Path
) -> None:
    """Seen to fail: the training went on to its end."""
    longer = tmp_path / "longer.toml"
    longer.write_text(config.read_text().replace(f"epochs = {EPOCHS}", "epochs = 40"))
    out = tmp_path / "runs"

    def press() -> None:
        eventually((out / CHECKPOINT_FILE).exists, "the first epoch")
        run_ids.append(on_server.last_run()["id"])
        on_server.ask(f"flow_runs/{run_ids[0]}/set_state", state={"type": "CANCELLING", "name": "Cancelling"})

    run_ids: list[str] = []
    pressing = threading.Thread(target=press)
    pressing.start()
    with pytest.raises(StoppedError, match="it goes on after the last finished epoch"):
        train_on_server(data, longer, out, leaks="refuse")
    pressing.join()
    with np.load(out / CHECKPOINT_FILE) as kept:
        assert len(json.loads(str(kept["history"]))) < 40
    assert on_server.ask("flow_runs/filter", flow_runs={"id": {"any_": run_ids}})[0]["state_type"] == "CANCELLED"
    tasks = lambda: [run["state_type"] for run in on_server.task_runs(run_ids[0]).values()]  # noqa: E731
    eventually(lambda: tasks() == ["CANCELLED"], "the task's state")
    directory = train_on_server(data, longer, out, leaks="refuse")
    assert len(read_description(directory).history) == 40


@pytest.fixture
def labelled(trained: Trained, on_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for labelled faces, and a store whose model in use was trained here."""
    store = tmp_path / "models"
    store.mkdir()
    monkeypatch.setenv(MODELS_VARIABLE, str(store))
    subprocess.run(["cp", "-r", trained.directory, store], check=True)
    ModelStore().promote(trained.directory.name)
    (tmp_path / "labelled").mkdir()
    return tmp_path / "labelled"


def test_a_watch_starts_a_retraining_when_enough_is_there_and_a_worse_candidate_is_refused_with_its_reasons(
    labelled: Path, trained: Trained, data: Path, on_server: Server
) -> None:
    settings = load_retrain_settings(
        None,
        **{"labelled": labelled, "data": data, "min_new_images": 30, "settle_seconds": 0, "batch_size": 16},
        **{"epochs": 1, "replay_per_new": 1, "learning_rate": 0.01},
    )
    rng = np.random.default_rng(3)
    pattern = rng.integers(0, 256, (5, 5)).astype(np.uint8)
    # Labels that say nothing: whatever is learned of them does not hold for the next.
    for number, index in enumerate(rng.integers(0, 7, 29)):
        write_face(labelled / EMOTIONS[index] / f"{number}.png", pattern, rng)
    state = watch_labelled(settings, return_state=True)
    assert state.name == "Nothing new"
    assert state.message == f"{labelled}: 29 new images; a retraining starts from 30 on (min_new_images)."

    write_face(labelled / "fear" / "last.png", pattern, rng)
    state = watch_labelled(settings, return_state=True)
    assert state.name == "Refused", state.message
    retraining = state.result()
    store = ModelStore()
    assert store.in_use().name == trained.directory.name
    kept = next(model for model in store.versions() if model.path == retraining.directory)
    assert kept.verdict is not None
    assert kept.verdict.decision == "refused"
    (run,) = [
        run
        for run in on_server.ask("flow_runs/filter", sort="START_TIME_DESC", limit=2)
        if run["name"] == "retrain: labelled"
    ]
    verdict = artifacts(on_server, run["id"])["retraining-verdict"]["data"]
    assert all(reason in verdict for reason in kept.verdict.reasons)
    assert verdict.startswith(f"{retraining.directory.name} is refused: {trained.directory.name} stays in use.")
    assert re.findall(r"!\[(\w+)\]", verdict) == ["confusion", "curves", "reliability"]
    # It is not tried again on the same images.
    assert watch_labelled(settings, return_state=True).name == "Nothing new"


def test_a_cancelled_retraining_of_a_watch_is_gone_on_with_when_another_face_is_labelled(
    labelled: Path, data: Path, on_server: Server
) -> None:
    """Seen to fail: it was begun again after ten looks."""
    rng = np.random.default_rng(4)
    pattern = rng.integers(0, 256, (5, 5)).astype(np.uint8)
    for number in range(21):
        write_face(labelled / EMOTIONS[number % 7] / f"{number}.png", pattern, rng)

    def runs() -> list[dict[str, Any]]:
        named = {"name": {"any_": ["retrain: labelled"]}}
        found = on_server.ask("flow_runs/filter", sort="START_TIME_DESC", flow_runs=named)
        return [run for run in found if run["parameters"]["settings"]["epochs"] == 400]

    with watching(labelled, data, on_server, "--epochs", "400", "--min-new-images", "20") as process:
        eventually(lambda: [*ModelStore().root.glob(f"{WORK_FOLDER}/*/{CHECKPOINT_FILE}")], "the first epoch")
        (run,) = runs()
        on_server.ask(f"flow_runs/{run['id']}/set_state", state={"type": "CANCELLING", "name": "Cancelling"})
        assert process.stderr is not None
        said = next(line for line in process.stderr if line.startswith("ferflow: "))
        assert said == (
            "ferflow: Cancelled. Start it again, and it goes on after the last finished epoch. This watch does so as "
            "soon as another face is labelled.\n"
        )
        time.sleep(3)
        assert [run["state_type"] for run in runs()] == ["CANCELLED"]
        write_face(labelled / "fear" / "last.png", pattern, rng)
        eventually(lambda: len(runs()) == 2, "the second run")


@contextlib.contextmanager
def watching(labelled: Path, data: Path, server: Server, *options: str) -> Iterator[subprocess.Popen[str]]:
    """`ferflow retrain --watch` with flows on the server, ten looks a second."""
    command = [sys.executable, "-m", "flows.cli", "retrain", "--watch", "--prefect", "--labelled", str(labelled)]
    command += ["--data", str(data), "--settle-seconds", "0", "--watch-seconds", "0.1", *options]
    environment = without_prefect() | {"PREFECT_API_URL": server.url}
    environment |= {"PREFECT_HOME": server.environment["PREFECT_HOME"]}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            end(process)


def test_a_watch_does_not_begin_again_on_faces_of_which_none_can_be_learned(
    labelled: Path, data: Path, on_server: Server
) -> None:
    """Seen to fail: a run after ten looks, and another after ten more."""
    subprocess.run(["cp", "-r", data / "train" / "happy", labelled], check=True)
    with watching(labelled, data, on_server, "--min-new-images", "16") as process:
        assert process.stderr is not None
        said = next(line for line in process.stderr if line.startswith("ferflow: "))
        assert "of 16 new images none is left to learn from" in said
        time.sleep(3)
        runs = on_server.ask("flow_runs/filter", sort="START_TIME_DESC", limit=2)
        assert [run["parameters"]["settings"]["labelled"] == str(labelled) for run in runs] == [True, False]


def test_what_a_flow_cannot_do_is_one_sentence(labelled: Path, on_server: Server, tmp_path: Path) -> None:
    nowhere = load_retrain_settings(None, labelled=tmp_path / "nowhere")
    for state in (
        watch_labelled(nowhere, return_state=True),
        train_emotion_model(str(tmp_path / "nowhere"), return_state=True),
    ):
        assert state.type.value == "FAILED"
        assert state.message is not None
        assert state.message.startswith(f"{tmp_path}/nowhere: there is no such folder")


@pytest.mark.parametrize("flow", [train_emotion_model, watch_labelled])
def test_the_forms_explain_every_field(flow: object) -> None:
    form = flow.parameters  # type: ignore[attr-defined]
    fields = dict(form.properties)
    for name in form.definitions or {}:
        fields |= form.definitions[name]["properties"]
    assert [name for name, field in fields.items() if len(field.get("description", "")) < 15] == []


def test_the_command_refuses_a_leak_and_says_what_to_do(
    data: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leaky = tmp_path / "leaky"
    subprocess.run(["cp", "-r", data, leaky], check=True)
    (leaky / "train/happy/again.png").write_bytes((leaky / "test/happy/PrivateTest_0.png").read_bytes())
    status = main(["train", str(leaky), "--config", str(config), "--out", str(tmp_path / "out"), "--no-prefect"])
    assert status == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"ferflow: {leaky}: 1 of its training images")
    assert "train/happy/again.png and test/happy/PrivateTest_0.png" in said
    assert "--leaks leave_out" in said
    assert not (tmp_path / "out").exists()


def test_the_command_says_that_too_little_is_new_without_loading_anything_slow(tmp_path: Path, data: Path) -> None:
    (tmp_path / "labelled" / "happy").mkdir(parents=True)
    write_face(tmp_path / "labelled/happy/one.png", np.eye(5, dtype=np.uint8) * 255, np.random.default_rng(0))
    program = (
        "import sys\n"
        "from flows.cli import main\n"
        "status = main(sys.argv[1:])\n"
        "print(status, sorted({name.split('.')[0] for name in sys.modules} & {'tensorflow', 'keras', 'prefect'}))"
    )
    arguments = ["retrain", "--labelled", tmp_path / "labelled", "--data", data, "--settle-seconds", "0"]
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments), "--no-prefect"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [
        f"{tmp_path}/labelled: 1 new image; a retraining starts from 100 on (min_new_images).",
        "0 []",
    ]


def test_too_little_new_is_said_with_what_lies_there_and_does_not_count(tmp_path: Path) -> None:
    """Seen to fail: it said `0 new images` and not a word of the others."""
    folder = tmp_path / "labelled"
    for name in ("bored/1.png", "unsure/1.png", "happy/monday/1.png", "sad/1.tiff", "sad/2.png", "sad/.3.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        # Nobody opens them, or these would be told of as well.
        (folder / name).write_bytes(b"no image")
    start = f"{folder}: 0 new images; a retraining starts from 20 on (min_new_images)."
    settings = load_retrain_settings(None, labelled=folder, min_new_images=20, settle_seconds=3600)
    assert describe_nothing_new(0, settings) == (
        f"{start} 1 picture is passed over, as it lies beside or below the folders that are read, for example "
        "happy/monday/1.png. 1 picture is passed over, as its format is not read (save it as .jpg or .png), for "
        "example sad/1.tiff. 2 images whose label is none of the emotions (bored 1, unsure 1), for example "
        "bored/1.png; unsure/1.png. 1 image counts when it has not changed for 3600 s (settle_seconds)."
    )
    for name in ("bored", "unsure", "happy"):
        shutil.rmtree(folder / name)
    (folder / "sad/1.tiff").unlink()
    assert describe_nothing_new(0, settings.model_copy(update={"settle_seconds": 0.0})) == start
    # A bucket is not asked.
    elsewhere = settings.model_copy(update={"labelled": "s3://faces/labelled"})
    assert describe_nothing_new(1, elsewhere).startswith("s3://faces/labelled: 1 new image; a retraining starts from")


def test_a_watch_says_what_is_wrong_once_and_stops_with_a_word(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "flows.cli", "retrain", "--watch", "--labelled", str(tmp_path / "gone")]
    command += ["--watch-seconds", "0.01", "--no-prefect"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        first = [process.stderr.readline(), process.stderr.readline()]
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read().splitlines()
    assert process.returncode == 130
    assert first[0].startswith("Watching ")
    assert first[1].startswith(f"ferflow: {tmp_path}/gone: there is no such folder.")
    assert rest == ["ferflow: stopped; a retraining that was under way is gone on with by the same command."]


@pytest.mark.parametrize("command", ["train", "retrain"])
def test_the_commands_explain_every_option(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    said = capsys.readouterr().out
    if command == "retrain":
        assert all(f"--{name.replace('_', '-')} " in said for name in RetrainSettings.model_fields)
    assert "--prefect" in said


def test_the_time_left_is_reckoned_from_what_was_done_since_it_went_on() -> None:
    seconds = iter([100.0, 110.0, 120.0])
    pace = Pace(clock=lambda: next(seconds))
    # Gone on in the third of four epochs: the first two cost nothing now.
    pace.watch(Step(3, 4, 0, 100, 1.0, 0.5))
    assert pace.seconds_left is None
    pace.watch(Step(3, 4, 50, 100, 1.0, 0.5))
    assert (pace.done, pace.seconds_left) == (0.625, pytest.approx(30))
    pace.watch(Step(4, 4, 100, 100, 0.123, 0.5))
    assert (pace.done, pace.seconds_left) == (1, 0)
    assert describe_step(Step(4, 4, 100, 100, 0.1234, 0.5), 90) == (
        "epoch 4 of 4: loss 0.123, accuracy 50.0 %, 90 s left"
    )


@pytest.mark.parametrize(("seconds", "said"), [(0.4, "0 s"), (99, "99 s"), (130, "2 min"), (3900, "1 h 5 min")])
def test_a_time_is_said_as_a_person_would(seconds: float, said: str) -> None:
    assert describe_seconds(seconds) == said


def test_what_trainings_say_is_heard_only_while_one_listens() -> None:
    import logging

    heard: list[str] = []
    speak: Callable[..., None] = logging.getLogger("training.fit").info
    with hear_training(heard.append):
        speak("epoch %d", 1)
    speak("epoch %d", 2)
    assert heard == ["epoch 1"]


def artifacts(server: Server, run_id: str) -> dict[str, dict[str, str]]:
    found = server.ask("artifacts/filter", artifacts={"flow_run_id": {"any_": [run_id]}})
    return {artifact["key"]: artifact for artifact in found}
