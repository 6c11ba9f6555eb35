"""flows -> what people find in Prefect's page: deployments with a description, tags, a form and perhaps a schedule"""

import contextlib
import copy
import importlib
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ferflow.config import load_settings
from ferflow.watch_settings import WatchSettings, load_watch_settings

if TYPE_CHECKING:
    from prefect.deployments.runner import RunnerDeployment

_LOOK_SECONDS = 15.0
# How soon a model that was added can be chosen in a form.
_SLUG = "nightly"
# By it a schedule is found again.


@dataclass(frozen=True, slots=True)
class Offer:
    """A flow as people find it: prefect.yaml holds the same for work pools, and a test compares them."""

    name: str
    """Of the deployment."""
    flow: str
    """Module and function."""
    description: str
    """What it does, in plain words."""
    tags: tuple[str, ...]
    """To find it by."""
    parameters: Mapping[str, Any]
    """What its form is filled in with; for every other field the flow's own default stands."""
    cron: str | None = None
    """When it is started by itself, in the server's time."""
    is_scheduled: bool = True
    """Whether the schedule is on until somebody turns it off, or off until somebody turns it on."""


def offers(folder: str, watching: WatchSettings) -> tuple[Offer, ...]:
    """Everything that can be started from Prefect's page.

    Args:
        folder: where the folders of training data lie, with its whole path.
        watching: where videos come from, where results go, and how they are analysed, with whole paths.
    """
    videos: dict[str, Any] = {"sources": watching.sources, "results": watching.results}
    if watching.settings != load_settings(None):
        videos["settings"] = watching.settings.model_dump(mode="json")
    analysis = {**videos, **_changed(watching, "workers", "ray")}
    of_watch = "after", "done_folder", "failed_folder", "redo_outdated", "videos_per_run", "deployment"
    looking = {**analysis, **_changed(watching, *of_watch)}
    faces = {"settings": {"labelled": f"{folder}/labelled", "data": f"{folder}/fer2013"}}
    return (
        Offer(
            name="analyze-videos",
            flow="flows.analyze_videos:analyze_videos",
            description="Finds the faces in videos and tells which emotion each shows, frame by frame. Name one video "
            "or a whole folder. Writes tables, a copy of each video with boxes and labels, and a picture of its "
            "timeline. What was done before is not done again.",
            tags=("videos",),
            parameters=analysis,
        ),
        Offer(
            name="watch-inbox",
            flow="flows.watch_inbox:watch_inbox",
            description="Looks once for new videos in the inbox and analyses them. While `ferflow up` or `ferflow "
            "watch` runs, nobody needs to start this: new videos are found by themselves.",
            tags=("videos",),
            parameters=looking,
        ),
        Offer(
            name="train-emotion-model",
            flow="flows.train_emotion_model:train_emotion_model",
            description="Trains an emotion model from the beginning on labelled pictures of faces, for example "
            "FER2013. Takes hours. The new model is used only after `ferflow models promote`.",
            tags=("models",),
            parameters={"data": f"{folder}/fer2013", "out": f"{folder}/runs"},
        ),
        Offer(
            name="retrain-emotion-model",
            flow="flows.retrain_emotion_model:retrain_emotion_model",
            description="Lets the emotion model in use learn from faces that you have sorted into folders by emotion. "
            "The new model takes over only if it is better.",
            tags=("models",),
            parameters=faces,
        ),
        Offer(
            name="watch-labelled",
            flow="flows.watch_labelled:watch_labelled",
            description="Looks whether enough newly sorted faces are there, and then starts a retraining. Turn its "
            "schedule on to have that done every night.",
            tags=("models",),
            parameters=faces,
            cron="0 2 * * *",
            is_scheduled=False,
        ),
        Offer(
            name="compact-results",
            flow="flows.compact_results:compact_results",
            description="Merges the many small table files of past days into a few big ones, so that queries stay "
            "fast. Nothing is lost or doubled, and it may run at any time; only pandas may see rows of a bucket twice "
            "for a second. Runs every night by itself.",
            tags=("results",),
            parameters={"results": watching.results},
            cron="30 3 * * *",
        ),
    )


def _changed(watching: WatchSettings, *names: str) -> dict[str, Any]:
    """Settings of a watch that are other than usual; for the usual ones the flow's own default stands."""
    usual = load_watch_settings(None)
    return {name: getattr(watching, name) for name in names if getattr(watching, name) != getattr(usual, name)}


def registered(offer: Offer) -> "RunnerDeployment | None":
    """A deployment for a process that serves it; what a person has changed about its schedule stays.

    Returns:
        None where it was deployed to a work pool: served as well, it would keep the pool and lose what is written of it
        in prefect.yaml, so that workers on other hosts were sent to folders of this one.

    Raises:
        Exception: what Prefect raises where no server answers.
    """
    from prefect import get_client
    from prefect.client.schemas.actions import DeploymentScheduleUpdate
    from prefect.exceptions import ObjectNotFound
    from prefect.schedules import Cron
    from prefect.types.entrypoint import EntrypointType

    module, function = offer.flow.split(":")
    flow = getattr(importlib.import_module(module), function)
    deployment: RunnerDeployment = flow.to_deployment(
        offer.name,
        description=offer.description,
        tags=[*offer.tags],
        parameters=dict(offer.parameters),
        schedule=Cron(offer.cron, active=offer.is_scheduled, slug=_SLUG) if offer.cron else None,
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    with get_client(sync_client=True) as client, contextlib.suppress(ObjectNotFound):
        there = client.read_deployment_by_name(deployment.full_name)
        if there.work_pool_name is not None:
            return None
        if offer.cron and there.schedules:
            deployment.schedules = [DeploymentScheduleUpdate(slug=_SLUG)]
    return deployment


def refresh_forms() -> None:
    """Make the forms on the server complete: they offer the emotion models that are installed now.

    A deployment is registered with what its flow's signature says, and models come and go afterwards.

    Raises:
        Exception: what Prefect raises where no server answers.
    """
    from prefect import get_client
    from prefect.client.schemas.actions import DeploymentUpdate
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName

    from models.store import ModelStore

    versions = [model.description.version for model in ModelStore().versions()]
    names = [offer.name for offer in offers("", load_watch_settings(None))]
    with get_client(sync_client=True) as client:
        ours = DeploymentFilter(name=DeploymentFilterName(any_=names))
        for deployment in client.read_deployments(deployment_filter=ours):
            before = deployment.parameter_openapi_schema or {}
            form = complete(before, deployment.parameters, versions)
            if form != before:
                client.update_deployment(deployment.id, DeploymentUpdate(parameter_openapi_schema=form))


def keep_forms_current() -> None:
    """Refresh the forms again and again, for ever; while the server is away, later."""
    # It would say the same of a damaged model at every look; `ferflow models list` says it too.
    logging.getLogger("models.store").setLevel(logging.ERROR)
    while True:
        time.sleep(_LOOK_SECONDS)
        with contextlib.suppress(Exception):
            refresh_forms()


def complete(form: Mapping[str, Any], filled_in: Mapping[str, Any], versions: Sequence[str]) -> dict[str, Any]:
    """A form as people read it.

    Args:
        form: the JSON schema of a flow's parameters, as Prefect makes it.
        filled_in: what the form begins with.
        versions: of the emotion models that are installed.

    Returns:
        The same with a choice of versions for the model, titles of words, examples in the help texts, and no room for
        parameters that the flow does not have: a run with one would crash.
    """
    completed: dict[str, Any] = copy.deepcopy(dict(form))
    completed["additionalProperties"] = False
    for group in [completed, *completed.get("definitions", {}).values()]:
        for name, field in group.get("properties", {}).items():
            field["title"] = name.replace("_", " ").capitalize()
            for example in field.get("examples", ()):
                # The page itself shows one only in a field that is empty.
                if example not in field["description"]:
                    field["description"] += f" For example {example}."
    if analysis := completed.get("definitions", {}).get("Settings"):
        chosen = filled_in.get("settings", {}).get("model", "default")
        model = analysis["properties"]["model"]
        model["enum"] = [*dict.fromkeys(["default", *versions, chosen])]
        model["description"] = "The emotion model: `default` is the one in use; or another that is installed."
    return completed
