"""What people find in Prefect's page: each with a description and a complete form; prefect.yaml says the same."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect_server import Server, end, eventually

from ferflow.watch_settings import load_watch_settings
from flows.automations import DEAD_RUNS
from flows.deployments import Offer, complete, offers

ROOT = Path(__file__).parents[1]
NAMES = {"analyze-videos", "watch-inbox", "train-emotion-model", "compact-results"}
PLACES = {"FERFLOW_INBOX": "/data/inbox", "FERFLOW_RESULTS": "/data/results", "FERFLOW_FOLDER": "/data"}

OFFERS = offers("/data", load_watch_settings(None, sources=["/data/inbox"], results="/data/results"))
each_offer = pytest.mark.parametrize("offer", OFFERS, ids=lambda offer: offer.name)


def flow_of(offer: Offer) -> Any:
    module, function = offer.flow.split(":")
    return getattr(importlib.import_module(module), function)


def form_of(offer: Offer) -> dict[str, Any]:
    schema = flow_of(offer).parameters.model_dump(exclude_unset=True)
    return complete(schema, offer.parameters, ["fer-small-1"])


def fields_of(form: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every field that a person can fill in, those within groups too."""
    fields = {}
    for group in [form, *form.get("definitions", {}).values()]:
        fields |= {f"{group.get('title')}.{name}": field for name, field in group["properties"].items()}
    return fields


@each_offer
def test_each_says_in_plain_words_what_it_does(offer):
    assert len(offer.description.split()) > 20
    assert offer.tags


def test_the_four_that_people_need_are_there():
    assert {offer.name for offer in OFFERS} >= NAMES


@each_offer
def test_every_field_has_a_help_text_and_a_title_of_words(offer):
    for name, field in fields_of(form_of(offer)).items():
        assert len(field.get("description", "")) >= 15, name
        # The page reads them as Markdown, and leaves out what looks like a tag.
        assert "<" not in field["description"], name
        assert "_" not in field["title"], name
        assert field["title"][0].isupper(), name


@each_offer
def test_every_field_for_a_path_or_an_address_is_text_with_an_example(offer):
    """Seen to fail: the folders that videos are moved to and the data of a retraining had none."""
    texts = {
        name: field
        for name, field in fields_of(form_of(offer)).items()
        if (field.get("items") or field).get("type") == "string" and "enum" not in field
    }
    assert [name for name, field in texts.items() if not re.search(r"\w:?/+\w", field["description"])] == []
    assert texts


@each_offer
def test_every_field_is_filled_in(offer):
    form = form_of(offer)
    for name, field in fields_of(form).items():
        group, key = name.split(".", 1)
        assert "default" in field or (group == form["title"] and key in offer.parameters), name
        # The page shows such a field as: Property is type "None".
        assert {"type": "null"} not in field.get("anyOf", []), name


@each_offer
def test_the_flow_takes_what_its_form_begins_with(offer):
    flow_of(offer).validate_parameters(dict(offer.parameters))


def test_choices_are_choices_and_their_help_texts_offer_no_others():
    """Seen to fail: the model could be "the folder of another", which the form has no room for."""
    fields = {offer.name: fields_of(form_of(offer)) for offer in OFFERS}
    assert fields["analyze-videos"]["Settings.model"]["enum"] == ["default", "fer-small-1"]
    assert fields["watch-inbox"]["Settings.model"]["enum"] == ["default", "fer-small-1"]
    for name in ("analyze-videos", "watch-inbox"):
        # The command takes the folder of a model too, and its help text says so.
        assert "folder" not in fields[name]["Settings.model"]["description"]
    assert fields["watch-inbox"]["Parameters.after"]["enum"] == ["leave", "move"]
    assert fields["train-emotion-model"]["Parameters.leaks"]["enum"] == ["refuse", "leave_out", "keep"]


def test_a_model_that_a_watch_names_by_its_folder_can_be_chosen(tmp_path):
    config = tmp_path / "watch.toml"
    config.write_text('[settings]\nmodel = "/models/mine"\n')
    offer = offers("/data", load_watch_settings(config))[0]
    assert offer.parameters["settings"]["model"] == "/models/mine"
    assert form_of(offer)["definitions"]["Settings"]["properties"]["model"]["enum"][-1] == "/models/mine"


def test_what_a_watch_is_told_is_filled_in_where_the_form_has_a_field_for_it():
    """Seen to fail: only the places and the settings of the analysis were."""
    told = {"workers": 3, "ray": "ray://head:10001", "after": "move", "deployment": "analyze-videos/analyze-videos"}
    by_name = {offer.name: offer for offer in offers("/data", load_watch_settings(None, **told))}
    analyze, look = by_name["analyze-videos"], by_name["watch-inbox"]
    assert {name: analyze.parameters.get(name) for name in told} == told | {"after": None, "deployment": None}
    assert {name: look.parameters.get(name) for name in told} == told
    for offer in (analyze, look):
        flow_of(offer).validate_parameters(dict(offer.parameters))


def test_completing_a_form_twice_changes_nothing():
    form = form_of(OFFERS[0])
    assert complete(form, OFFERS[0].parameters, ["fer-small-1"]) == form


def test_only_compacting_is_started_by_the_clock_unless_somebody_wants_more():
    assert [offer.name for offer in OFFERS if offer.cron and offer.is_scheduled] == ["compact-results"]


def test_prefect_yaml_says_the_same():
    placeholders = {variable: f"{{{{ ${variable} }}}}" for variable in PLACES}
    watching = load_watch_settings(
        None, sources=[placeholders["FERFLOW_INBOX"]], results=placeholders["FERFLOW_RESULTS"]
    )
    expected = []
    for offer in offers(placeholders["FERFLOW_FOLDER"], watching):
        table: dict[str, Any] = {
            "name": offer.name,
            "entrypoint": offer.flow.replace(":", "."),
            "description": offer.description,
            "tags": [*offer.tags],
            "parameters": dict(offer.parameters),
            "work_pool": {
                "name": "ferflow",
                "job_variables": {
                    "env": {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30", "PREFECT_CLIENT_RETRY_EXTRA_CODES": "500"}
                },
            },
        }
        if offer.cron:
            table["schedules"] = [{"slug": "nightly", "cron": offer.cron, "active": offer.is_scheduled}]
        expected.append(table)
    written = yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))
    assert written == {"pull": [], "deployments": expected}


def test_prefect_deploys_them_to_a_work_pool(server):
    def prefect(*arguments: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "prefect", "--no-prompt", *arguments],
            cwd=ROOT,
            env=server.environment | PLACES | {"FERFLOW_MODELS": os.environ["FERFLOW_MODELS"]},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    prefect("work-pool", "create", "ferflow", "--type", "process")
    prefect("deploy", "--all")
    deployed = {deployment["name"]: deployment for deployment in server.ask("deployments/filter")}
    assert deployed.keys() == {offer.name for offer in OFFERS}
    for offer in OFFERS:
        deployment = deployed[offer.name]
        assert deployment["work_pool_name"] == "ferflow"
        assert deployment["description"] == offer.description
        assert deployment["parameters"] == offer.parameters
        assert deployment["enforce_parameter_schema"]
        assert [(plan["schedule"]["cron"], plan["active"]) for plan in deployment["schedules"]] == (
            [(offer.cron, offer.is_scheduled)] if offer.cron else []
        )


def test_what_is_deployed_to_a_work_pool_is_not_served_as_well_and_runs_are_looked_after(server, tmp_path):
    """Seen to fail: it kept its pool, and its workers were sent to the inbox of the host that served it; and only where
    a watch had run was there the automation that says of dead runs that they are dead."""
    before = deployed_to_pool(server)
    places = ["--inbox", str(tmp_path / "inbox"), "--results", str(tmp_path / "results")]
    with (tmp_path / "log").open("wb") as log:
        serving = subprocess.Popen(
            [sys.executable, "-m", "flows.cli", "serve", *places],
            cwd=ROOT,
            env=server.environment | {"FERFLOW_MODELS": os.environ["FERFLOW_MODELS"]},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        said = "compact-results: this is deployed to a work pool"
        eventually(lambda: said in (tmp_path / "log").read_text(), "all to be told of")
        automations = lambda: [automation["name"] for automation in server.ask("automations/filter")]  # noqa: E731
        eventually(lambda: automations() == [DEAD_RUNS], "the automation")
        # It goes on: what is deleted is served by the next one.
        with pytest.raises(subprocess.TimeoutExpired):
            serving.wait(5)
    finally:
        end(serving)
    assert deployed_to_pool(server) == before


def deployed_to_pool(server: Server) -> dict[str, Any]:
    asked = ("work_pool_name", "parameters", "job_variables", "pull_steps")
    there = {each["name"]: {name: each[name] for name in asked} for each in server.ask("deployments/filter")}
    assert {each["work_pool_name"] for each in there.values()} == {"ferflow"}
    return there
