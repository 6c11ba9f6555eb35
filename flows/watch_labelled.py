"""a folder of labelled faces -> a retraining as soon as enough new ones lie in it"""

from typing import Any

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.states import Cancelled, Completed, Failed

from ferflow.errors import FerflowError, StoppedError
from flows.retrain_emotion_model import retrain_emotion_model
from flows.server import failed
from flows.training_report import describe_nothing_new
from models.store import ModelStore
from training.retrain import count_new_images
from training.retrain_settings import RetrainSettings, load_retrain_settings

_DEFAULTS = load_retrain_settings(None)


@flow(flow_run_name="look into {settings.labelled}", persist_result=False)
def watch_labelled(settings: RetrainSettings = _DEFAULTS) -> State[Any]:
    """Look once whether enough new labelled faces are there, and start a retraining if so. Meant for a schedule.

    While too little is new it reads no image and loads no network.

    Args:
        settings: Where to look, from how many on, and how to retrain.
    """
    try:
        count = count_new_images(settings, ModelStore())
    except FerflowError as error:
        return failed(error)
    if count < settings.min_new_images:
        said = describe_nothing_new(count, settings)
        return Completed(name="Nothing new", message=said, data=None)
    get_run_logger().info("%d new labelled faces", count)
    # A state of its own: where a flow hands on another's, Prefect names it anew and drops the sentence.
    state: State[Any] = retrain_emotion_model(settings, return_state=True)
    ended: Any = state.result(raise_on_failure=False)
    if isinstance(ended, StoppedError):
        return Cancelled(message=state.message, data=ended)
    if isinstance(ended, BaseException):
        return Failed(message=state.message, data=ended)
    return Completed(name=state.name, message=state.message, data=ended)
