"""labelled faces -> an emotion model, as one Prefect flow run with its curves and mistakes as artifacts"""

from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed, Failed

from ferflow.errors import FerflowError
from flows.pictures import page_of
from flows.server import result_on_server
from flows.training_report import describe_trained
from tasks.training import train_model
from training.dataset import Leaks
from training.fit import FIGURES


def _name_run() -> str:
    return f"train: {Path(flow_run.parameters['data']).name}"


@flow(flow_run_name=_name_run, persist_result=False)
def train_emotion_model(data: str, config: str | None = None, out: str = "runs", leaks: Leaks = "refuse") -> State[Any]:
    """Train an emotion model on labelled faces, or go on with a training that was interrupted.

    Leaves a model directory, which `ferflow models promote` takes into use, and pictures of the training: curves,
    confusion matrix, reliability and the worst mistakes.

    Args:
        data: Labelled faces: a folder of train/<emotion>/ and test/<emotion>/ or of <emotion>/ alone, an archive of
            one, fer2013.csv, or a table of path and label; for example /data/fer2013.
        config: Recipe, a TOML file like configs/train.toml; leave it empty for that one.
        out: Folder to write to. The same folder goes on from its checkpoint.
        leaks: What to do about training images that are also held out for validation or test.
    """
    try:
        directory = train_model(Path(data), None if config is None else Path(config), Path(out), leaks)
        said = describe_trained(directory)
        pictures = sorted((Path(out) / FIGURES).glob("*.png"))
        create_markdown_artifact(page_of(said, pictures), key="training-pictures", description=said.splitlines()[0])
    except FerflowError as error:
        # Its sentence is all that a person needs; raised, it would be shown with the lines of code it came through.
        return Failed(message=str(error), data=error)
    get_run_logger().info("%s", said)
    return Completed(message=said.splitlines()[0], data=directory)


def train_on_server(data: Path, config: Path | None, out: Path, *, leaks: Leaks) -> Path:
    """Run the flow in this process, on the Prefect server that is configured.

    Returns:
        The model directory.

    Raises:
        FerflowError: no server answers, or the training cannot be done.
    """
    where = None if config is None else str(config.absolute())
    trained = result_on_server(train_emotion_model, str(data.absolute()), where, str(out.absolute()), leaks)
    directory: Path = trained
    return directory
