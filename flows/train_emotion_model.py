"""labelled faces -> an emotion model, as one Prefect flow run with its curves and mistakes as artifacts"""

from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed

from ferflow.errors import FerflowError
from flows.pictures import page_of
from flows.run_page import stopped_when_cancelled
from flows.server import cancelled, failed, result_on_server
from flows.training_report import describe_trained
from tasks.training import train_model
from training.dataset import Leaks
from training.fit import FIGURES


def _name_run() -> str:
    return f"train: {Path(flow_run.parameters['data']).name}"


@flow(flow_run_name=_name_run, persist_result=False)
def train_emotion_model(data: str, config: str = "", out: str = "runs", leaks: Leaks = "refuse") -> State[Any]:
    """Train an emotion model on labelled faces, or go on with a training that was interrupted.

    Leaves a model directory, which `ferflow models promote` takes into use, and pictures of the training: curves,
    confusion matrix, reliability and the worst mistakes.

    Args:
        data: Labelled faces: a folder with train and test in it, and in each a folder for each emotion; an archive of
            one; or a table of path and label. For example /data/fer2013.
        config: Recipe, a TOML file, for example /data/train.toml; leave it empty for the usual one.
        out: Folder to write to, for example /data/runs. The same folder goes on where a training was interrupted.
        leaks: Training images that are also in the test: refuse to train, leave them out, or keep them.
    """
    try:
        with stopped_when_cancelled() as stop:
            directory = train_model(Path(data), Path(config) if config else None, Path(out), leaks, stop)
        if stop.is_set():
            return cancelled("Start it again, and it goes on after the last finished epoch.")
        said = describe_trained(directory)
        pictures = sorted((Path(out) / FIGURES).glob("*.png"))
        create_markdown_artifact(page_of(said, pictures), key="training-pictures", description=said.splitlines()[0])
    except FerflowError as error:
        return failed(error)
    get_run_logger().info("%s", said)
    return Completed(message=said.splitlines()[0], data=directory)


def train_on_server(data: Path, config: Path | None, out: Path, *, leaks: Leaks) -> Path:
    """Run the flow in this process, on the Prefect server that is configured.

    Returns:
        The model directory.

    Raises:
        FerflowError: no server answers, or the training cannot be done.
    """
    where = "" if config is None else str(config.absolute())
    trained = result_on_server(train_emotion_model, str(data.absolute()), where, str(out.absolute()), leaks)
    directory: Path = trained
    return directory
