"""The page of the emotion model, as a person sees it in a browser."""

import json
import re
import shutil
from datetime import UTC, datetime

import pytest
from browser import faint_texts, opened, serve_viewer
from playwright.sync_api import expect

from models.store import ModelStore, Verdict, shipped_model

REASON = "On 120 new faces it is not surely better: *63 %* against <b>61 %</b>."
CARD = "# A card\n\n![spy](https://example.org/spy.png)\n\nSeen by ![me](https://example.org/me.png) <script>1</script>"


@pytest.fixture(scope="module")
def viewer(tmp_path_factory):
    """The model that comes with ferflow is in use; another was refused."""
    folder = tmp_path_factory.mktemp("model")
    store = ModelStore(folder / "models")
    refused = store.root / "fer-small-11111111"
    shutil.copytree(shipped_model(), refused)
    description = (refused / "model.json").read_text().replace(shipped_model().name, refused.name)
    (refused / "model.json").write_text(json.dumps(json.loads(description) | {"history": [1]}))
    figures = {"accuracy": 10**400, "macro_f1": 10**400, "image_count": 3}
    (refused / "evaluation.json").write_text(json.dumps({"served": {"metrics": {"test": figures}}}))
    (refused / "MODEL_CARD.md").write_text(CARD)
    verdict = Verdict("refused", (REASON,), {}, datetime(2026, 11, 20, tzinfo=UTC), shipped_model().name)
    store.keep_verdict(refused.name, verdict)
    with serve_viewer(folder, FERFLOW_MODELS=str(store.root)) as started:
        yield started


@pytest.fixture
def model(viewer, page):
    """The page, open."""
    page.goto(f"{viewer.url}/model")
    expect(page.locator(".ff-state")).to_have_text("in use")
    return page


def test_the_version_in_use_shows_its_numbers_confusion_and_reliability(model):
    expect(model.locator(".ff-version")).to_contain_text(shipped_model().name)
    figures = re.compile(r"71.0%\s*accuracy.*2.8%\s*calibration error", re.DOTALL)
    expect(model.locator(".ff-tiles")).to_contain_text(figures)
    happy = model.locator(".ff-confusion tbody tr").filter(has_text="happy").locator("td")
    expect(happy.nth(3)).to_have_text("92%")
    picture = model.get_by_role("img").first
    expect(picture).to_be_visible()
    assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") > 100


def test_the_training_is_drawn(model):
    model.get_by_role("tab", name="How it learnt").click()
    expect(model.get_by_role("heading", name="Accuracy, %")).to_be_visible()
    expect(model.locator("canvas, svg.marks").first).to_be_visible()


def test_the_card_can_be_read(model):
    model.get_by_role("tab", name="Card").click()
    expect(model.get_by_role("heading", name="Data and split")).to_be_visible()


def test_a_refused_version_says_why(model):
    model.get_by_role("tab", name="All versions").click()
    expect(model.locator(".ff-versions:visible tr").filter(has_text="fer-small-11111111")).to_contain_text(REASON)
    model.get_by_role("combobox", name="Version").click()
    model.get_by_role("option", name="fer-small-11111111 · refused").click()
    expect(model.get_by_text(REASON).first).to_be_visible()
    expect(model.get_by_text("Refused on 2026-11-20")).to_be_visible()


def test_a_strangers_figures_that_cannot_be_are_not_told(model):
    """Seen to fail: an error stood in the place of them and of the list of all versions."""
    model.get_by_role("combobox", name="Version").click()
    model.get_by_role("option", name="fer-small-11111111 · refused").click()
    expect(model.locator(".ff-tiles")).to_contain_text(re.compile(r"–\s*accuracy.*–\s*macro-F1.*3\s*test", re.DOTALL))
    model.get_by_role("tab", name="How it learnt").click()
    expect(model.get_by_text("This version does not say how its training went.")).to_be_visible()


def test_a_strangers_card_fetches_nothing(viewer, model):
    asked = []
    model.on("request", lambda request: asked.append(request.url))
    model.get_by_role("combobox", name="Version").click()
    model.get_by_role("option", name="fer-small-11111111 · refused").click()
    model.get_by_role("tab", name="Card").click()
    expect(model.get_by_role("heading", name="A card")).to_be_visible()
    model.wait_for_timeout(500)
    assert [url for url in asked if "example.org" in url] == []


def test_the_open_tab_stays_open_when_another_version_is_chosen(model):
    model.get_by_role("tab", name="Card").click()
    expect(model.get_by_role("heading", name="Data and split")).to_be_visible()
    model.get_by_role("combobox", name="Version").click()
    model.get_by_role("option", name="fer-small-11111111 · refused").click()
    expect(model.get_by_text(REASON).first).to_be_visible()
    expect(model.get_by_role("heading", name="A card")).to_be_visible()


def test_every_text_stands_out_from_its_ground(model):
    expect(model.locator(".ff-confusion")).to_be_visible()
    assert faint_texts(model) == []


def test_on_a_phone_nothing_reaches_past_the_edge(viewer, browser):
    with opened(browser, width=390) as page:
        page.goto(f"{viewer.url}/model")
        expect(page.locator(".ff-confusion")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.parametrize("is_elsewhere", [False, True])
def test_in_use_is_the_version_of_the_analyses_settings(tmp_path, page, is_elsewhere):
    named = tmp_path / ("elsewhere" if is_elsewhere else "models") / "fer-small-22222222"
    shutil.copytree(shipped_model(), named)
    (named / "model.json").write_text((named / "model.json").read_text().replace(shipped_model().name, named.name))
    (tmp_path / "view.toml").write_text(f'[settings]\nmodel = "{named if is_elsewhere else named.name}"\n')
    with serve_viewer(tmp_path, "--config", "view.toml", FERFLOW_MODELS=str(tmp_path / "models")) as viewer:
        page.goto(f"{viewer.url}/model")
        expect(page.locator(".ff-version")).to_contain_text(re.compile(f"{named.name}\\s*in use"))
        page.get_by_role("tab", name="All versions").click()
        states = page.locator(".ff-versions:visible tbody tr td:nth-child(2)")
        expect(states.filter(has_text="in use")).to_have_count(1)


def test_a_model_of_the_settings_that_is_not_there_is_told_in_a_sentence(tmp_path, page):
    (tmp_path / "view.toml").write_text('[settings]\nmodel = "fer-huge"\n')
    with serve_viewer(tmp_path, "--config", "view.toml") as viewer:
        for name in ("model", "live"):
            page.goto(f"{viewer.url}/{name}")
            expect(page.get_by_role("alert")).to_contain_text("fer-huge: there is no emotion model", ignore_case=True)


def test_a_store_that_cannot_be_read_is_told_in_a_sentence(tmp_path, page):
    store = tmp_path / "models"
    store.mkdir()
    (store / "promotions.jsonl").write_text("no list")
    with serve_viewer(tmp_path, FERFLOW_MODELS=str(store)) as viewer:
        page.goto(f"{viewer.url}/model")
        expect(page.get_by_text("the list of promotions is damaged")).to_be_visible()
