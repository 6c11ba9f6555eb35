"""Prefect's server -> the automations that come with ferflow, on it"""

from datetime import timedelta
from typing import TYPE_CHECKING

from flows.reconcile import FLOWS

if TYPE_CHECKING:
    from prefect.events.schemas.automations import AutomationCore

_SILENT = timedelta(minutes=5)
# Ten heartbeats. The watcher looks after dead runs too and is quicker (flows/reconcile.py); this is for when none runs.

DEAD_RUNS = "ferflow: runs whose process is gone"
"""Name of the automation that marks dead runs as crashed."""


def ship_automations() -> None:
    """Make the automations that come with ferflow, where the server does not have them yet.

    What a person has changed about one, or has turned off, stays.

    Raises:
        Exception: what Prefect raises where the server does not answer.
    """
    from prefect import get_client

    with get_client(sync_client=True) as client:
        for automation in (_dead_runs(),):
            if not client.read_automations_by_name(automation.name):
                client.create_automation(automation)


def _dead_runs() -> "AutomationCore":
    from prefect.client.schemas.objects import StateType
    from prefect.events import ResourceSpecification
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

    return AutomationCore(
        name=DEAD_RUNS,
        description="A run of ferflow says every 30 seconds that it is alive. One that has said nothing for five "
        "minutes is marked as crashed: its process was killed, or its machine is gone.",
        tags=["ferflow"],
        trigger=EventTrigger(
            match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
            # A server may have flows of others, whose runs may be silent for longer.
            match_related=ResourceSpecification({"prefect.resource.role": "flow", "prefect.resource.name": [*FLOWS]}),
            after={"prefect.flow-run.heartbeat"},
            # Another heartbeat, or its end, which may have any name: "Completed with 2 failed videos".
            expect={"prefect.flow-run.*"},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=_SILENT,
        ),
        actions=[
            ChangeFlowRunState(
                name=None,
                force=False,
                state=StateType.CRASHED,
                message="Nothing was heard of it for five minutes: the process or the machine that carried it out is "
                "gone. What was finished is kept.",
            )
        ],
    )
