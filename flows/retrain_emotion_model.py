"""newly labelled faces -> the model in use, fine-tuned and promoted if it is better, as one Prefect flow run"""

from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed

from ferflow.errors import FerflowError
from ferflow.storage import absolute, place
from flows.pictures import page_of
from flows.run_page import stopped_when_cancelled
from flows.server import cancelled, failed, result_on_server
from flows.training_report import describe_nothing_new, describe_retrained
from models.store import ModelStore
from tasks.training import retrain_model
from training.retrain import Retraining, count_new_images, read_retraining
from training.retrain_settings import RetrainSettings, load_retrain_settings

_DEFAULTS = load_retrain_settings(None)


def _name_run() -> str:
    settings = flow_run.parameters["settings"]
    return f"retrain: {RetrainSettings.model_validate(settings).labelled_name}"


@flow(flow_run_name=_name_run, persist_result=False)
def retrain_emotion_model(settings: RetrainSettings = _DEFAULTS) -> State[Any]:
    """Fine-tune the emotion model in use on newly labelled faces; promote what comes out if it is better.

    The candidate is compared with the model in use on new faces that neither has learned and on the frozen test
    images. It is kept with its verdict either way. Nothing in the folder of labelled faces is moved or deleted.

    Args:
        settings: When it starts, how gently it goes, what it must prove.
    """
    try:
        with stopped_when_cancelled() as stop:
            directory = retrain_model(settings, stop)
        if stop.is_set():
            return cancelled("Start it again, and it goes on after the last finished epoch.")
        if directory is None:
            said = describe_nothing_new(count_new_images(settings, ModelStore()), settings)
            return Completed(name="Nothing new", message=said, data=None)
        retraining = read_retraining(directory)
        said = describe_retrained(retraining)
        page = page_of(said.replace("\n", "\n\n"), sorted(directory.glob("*.png")))
        create_markdown_artifact(page, key="retraining-verdict", description=said.splitlines()[0])
    except FerflowError as error:
        return failed(error)
    return Completed(name=retraining.verdict.decision.capitalize(), message=said, data=retraining)


def retrain_on_server(settings: RetrainSettings) -> Retraining | None:
    """Run the flow in this process, on the Prefect server that is configured; None if there was too little new.

    Raises:
        FerflowError: no server answers, or the retraining cannot be done.
    """
    here = {"labelled": str(absolute(place(settings.labelled))), "data": settings.data.absolute()}
    retraining: Retraining | None = result_on_server(retrain_emotion_model, settings.model_copy(update=here))
    return retraining
