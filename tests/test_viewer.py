"""The page as a whole, seen with a real browser."""

import pytest
from browser import serve_viewer
from playwright.sync_api import expect


@pytest.fixture(scope="module")
def viewer(tmp_path_factory):
    with serve_viewer(tmp_path_factory.mktemp("empty")) as started:
        yield started


@pytest.mark.parametrize("name", ["Videos", "Video", "Model", "Live"])
def test_each_page_opens_without_any_result(viewer, page, name):
    page.goto(viewer.url)
    page.get_by_role("link", name=name, exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    expect(page.get_by_text("Traceback")).to_have_count(0)
