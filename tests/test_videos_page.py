"""The page of all videos, as a person sees it in a browser."""

import re

import pytest
from browser import faint_texts, opened, serve_viewer, strip_colors
from made_results import add_failure, add_video
from playwright.sync_api import expect

from ferflow.emotions import EMOTIONS
from ferflow.overlay import EMOTION_COLORS_RGB
from ferflow.progress import Teller
from ferflow.records import Segment
from ferflow.sources import open_results
from ferflow.storage import Results
from viewer.videos_page import _said_duration

COLORS = dict(zip(EMOTIONS, EMOTION_COLORS_RGB, strict=True))
HARMFUL = """<img src=x onerror="document.title='harmed'">'&.mp4"""


@pytest.fixture(scope="module")
def viewer(tmp_path_factory):
    """A hundred and ten videos of two folders; the newest has failed, and one has a name that would do harm."""
    folder = tmp_path_factory.mktemp("many")
    results = open_results(folder / "results")
    segments = [Segment(0, "sad", 0.0, 5.0, 0.9), Segment(0, "happy", 5.0, 10.0, 0.9)]
    for number in range(105):
        add_video(results, f"/study/old/{number:03}.mp4", emotion="neutral")
    two = [Segment(0, "happy", 0.0, 7.5, 0.9), Segment(1, "angry", 0.0, 5.0, 0.9)]
    add_video(results, "/study/new/two.mp4", emotion="happy", segments=two, track_count=2)
    add_video(results, "/study/new/noon.mp4", emotion="happy", segments=segments)
    add_video(results, "/study/new/nobody.mp4", face_count=0, dominant_emotion=None, emotion_shares=None)
    add_video(results, f"/study/new/{HARMFUL}", emotion="fear")
    add_failure(results, "/study/new/notes.mp4")
    with serve_viewer(folder) as started:
        yield started


@pytest.fixture
def videos(viewer, page):
    """The page of all videos, open."""
    page.goto(f"{viewer.url}/videos")
    expect(rows(page).first).to_be_visible()
    return page


def rows(page):
    return page.locator("table.ff-videos tbody tr:visible")


def choose(page, label, option):
    page.get_by_role("combobox", name=label).click()
    page.get_by_role("option", name=option, exact=True).click()


def test_each_video_has_a_row_and_a_failure_its_reason(videos):
    expect(rows(videos).first).to_contain_text("notes.mp4")
    expect(rows(videos).first).to_contain_text("This is a text file, not a video.")
    expect(rows(videos).nth(2)).to_contain_text("No face was found.")
    said = rows(videos).locator("td[data-name=Status]")
    assert said.all_inner_texts()[:4] == ["Failed", "Done", "Without a face", "Done"]
    noon = rows(videos).nth(3)
    expect(noon).to_contain_text(re.compile("noon.mp4.*happy 70%.*10.0 s", re.DOTALL))


def test_what_is_at_work_is_named_and_leads_to_how_far_it_is(viewer, page):
    results = open_results(viewer.folder / "results")
    teller = Teller(results, "0123456789abcdef", "/study/new/<b>long.mp4", stages=("faces", "drawing"))
    teller._told_at -= 60
    teller.tell("faces", 1000, 2000)
    try:
        page.goto(f"{viewer.url}/videos")
        page.get_by_role("link", name="At work now: <b>long.mp4 (25%)").click()
        expect(page.get_by_text("25% of all work")).to_be_visible()
    finally:
        teller.end()
    page.goto(f"{viewer.url}/videos")
    expect(rows(page).first).to_be_visible()
    expect(page.get_by_text("At work now")).to_have_count(0)


def test_a_strip_shows_the_emotions_over_the_time_of_a_video(videos):
    strip = rows(videos).nth(3).locator(".ff-strip")
    assert (strip_colors(strip)[:, :80, :3] == COLORS["sad"]).all()
    assert (strip_colors(strip)[:, 80:, :3] == COLORS["happy"]).all()
    expect(strip).to_have_attribute("alt", "sad 50%, happy 50%")


def test_what_several_people_show_at_a_time_shares_the_strip(videos):
    colors = strip_colors(rows(videos).nth(4).locator(".ff-strip"))
    # From below in the order of the emotions, half and half; then one of them alone; then nobody.
    assert (colors[12:, :80, :3] == COLORS["angry"]).all()
    assert (colors[:12, :80, :3] == COLORS["happy"]).all()
    assert (colors[:, 80:120, :3] == COLORS["happy"]).all()
    assert not colors[:, 120:, 3].any()


def test_a_harmful_name_is_only_a_name(videos):
    expect(videos.get_by_role("link", name=HARMFUL)).to_be_visible()
    expect(videos.locator("table img:not(.ff-strip)")).to_have_count(0)
    assert videos.title() != "harmed"


def test_filters_leave_what_is_wanted_and_are_part_of_the_address(videos):
    choose(videos, "Status", "failed")
    expect(rows(videos)).to_have_count(1)
    assert "status=failed" in videos.url
    videos.reload()
    expect(rows(videos)).to_have_count(1)
    videos.get_by_label("Name").fill("nothing like this")
    videos.get_by_label("Name").press("Enter")
    expect(videos.get_by_text("No video fits these filters.")).to_be_visible()
    videos.get_by_role("button", name="Show all videos").click()
    expect(rows(videos)).to_have_count(100)


def test_a_folder_can_be_looked_at_by_itself(videos):
    choose(videos, "Folder", "new")
    expect(rows(videos)).to_have_count(5)
    expect(videos.locator(".ff-tiles")).to_contain_text(re.compile("5\\s*videos\\s*1\\s*failed\\s*1\\s*without a face"))


def test_a_hundred_videos_are_compared_at_a_glance(videos):
    expect(rows(videos)).to_have_count(100)
    # All but the failure and the one without a face.
    expect(videos.locator("table.ff-videos .ff-strip")).to_have_count(98)


def test_many_videos_are_shown_a_page_at_a_time_in_the_order_that_is_asked_for(videos):
    choose(videos, "Order", "name")
    expect(rows(videos).first).to_contain_text("000.mp4")
    expect(videos.get_by_text("1 to 100 of 110")).to_be_visible()
    videos.get_by_role("button", name="Next").click()
    expect(videos.get_by_text("101 to 110 of 110")).to_be_visible()
    expect(rows(videos)).to_have_count(10)
    choose(videos, "Order", "oldest")
    expect(videos.get_by_text("1 to 100 of 110")).to_be_visible()


@pytest.mark.parametrize(
    ("seconds", "said"), [(59.9, "59.9 s"), (3599.4, "59:59 min"), (3599.7, "1:00:00 h"), (359_999.7, "100 h")]
)
def test_a_duration_has_the_unit_of_what_is_shown(seconds, said):
    assert _said_duration(seconds) == said


def test_a_click_leads_to_the_page_of_the_video(videos):
    videos.get_by_role("link", name="noon.mp4").click()
    expect(videos).to_have_url(re.compile("/video\\?video=[0-9a-f]{16}"))
    expect(videos.get_by_role("heading", name="noon.mp4")).to_be_visible()


def test_what_was_dropped_is_still_listed_after_a_visit_to_a_video(viewer, page, tmp_path):
    (tmp_path / "notes.mp4").write_text("These are no pictures.\n" * 20)
    page.goto(viewer.url)
    page.locator("input[type=file]").set_input_files(tmp_path / "notes.mp4")
    expect(page.get_by_role("alert")).to_contain_text("notes.mp4")
    page.evaluate("window.isSame = true")
    page.get_by_role("link", name="Videos", exact=True).click()
    page.get_by_role("link", name="noon.mp4").click()
    expect(page.get_by_role("heading", name="noon.mp4")).to_be_visible()
    page.go_back()
    expect(rows(page).first).to_be_visible()
    page.get_by_role("link", name="noon.mp4").click()
    expect(page.get_by_role("heading", name="noon.mp4")).to_be_visible()
    page.get_by_role("link", name="Drop", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("notes.mp4")
    assert page.evaluate("window.isSame"), "the page was not loaded anew"


def test_back_from_a_video_leads_to_the_videos_that_were_chosen(videos):
    choose(videos, "Mostly", "happy")
    expect(rows(videos)).to_have_count(2)
    videos.get_by_role("link", name="noon.mp4").click()
    expect(videos.get_by_role("heading", name="noon.mp4")).to_be_visible()
    videos.go_back()
    expect(rows(videos)).to_have_count(2)
    assert "emotion=happy" in videos.url


def test_a_link_to_a_video_can_be_opened_in_a_tab_of_its_own(videos):
    with videos.context.expect_page() as opened_tab:
        videos.get_by_role("link", name="noon.mp4").click(modifiers=["ControlOrMeta"])
    expect(opened_tab.value.get_by_role("heading", name="noon.mp4")).to_be_visible()
    expect(rows(videos).first).to_be_visible()


def test_what_is_finished_meanwhile_appears_by_itself(viewer, videos):
    added = add_video(Results(viewer.folder / "results"), "/study/new/just now.mp4")
    try:
        expect(videos.get_by_role("link", name="just now.mp4")).to_be_visible()
    finally:
        Results(viewer.folder / "results").rows("videos", added.video_id).unlink()


def test_a_damaged_table_is_told_and_the_rest_is_shown(viewer, videos):
    damaged = viewer.folder / "results" / "videos" / "0123.parquet"
    damaged.write_bytes(b"no table")
    try:
        expect(videos.get_by_text("damaged, and left out: 0123.parquet")).to_be_visible()
        expect(rows(videos).first).to_be_visible()
    finally:
        damaged.unlink()


def test_every_text_stands_out_from_its_ground(videos):
    assert faint_texts(videos) == []


def test_on_a_phone_nothing_reaches_past_the_edge(viewer, browser):
    with opened(browser, width=390) as page:
        page.goto(f"{viewer.url}/videos")
        expect(rows(page).first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        strip = rows(page).nth(3).locator(".ff-strip").bounding_box()
        assert strip["x"] >= 0
        assert 300 < strip["width"] <= 390


def test_without_any_result_the_page_says_what_to_do(tmp_path, page):
    with serve_viewer(tmp_path) as viewer:
        page.goto(f"{viewer.url}/videos")
        expect(page.get_by_text("No video has been analysed yet.")).to_be_visible()
        page.get_by_role("link", name="Drop a video").click()
        expect(page).to_have_url(re.compile("/$|/drop"))
