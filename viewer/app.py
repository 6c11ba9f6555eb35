"""a browser's request -> one of the pages: Drop, Videos, Video, Model, Live"""

from collections.abc import Callable
from typing import Any

import streamlit as st

from viewer import drop, live_page, model_page, theme, video, videos_page

# By itself a link in a table loads the whole page anew, and what this session knows is forgotten. Here it is as if
# somebody pressed the browser's Forward. One that is to be opened in another tab or window is left to the browser.
_FOLLOW_LINKS = """
export default function () {
    const follow = event => {
        const link = event.target.closest("a.ff-within")
        if (!link || event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return
        event.preventDefault()
        history.pushState({}, "", link.href)
        dispatchEvent(new PopStateEvent("popstate"))
        document.querySelector('[data-testid=stMain]').scrollTo(0, 0)
    }
    document.addEventListener("click", follow)
    return () => document.removeEventListener("click", follow)
}
"""

_links: Any = None


def _page(show: Callable[[], None], title: str, icon: str, url_path: str) -> None:
    """Known to the pages by `st.session_state.pages`, so that one can lead to another."""
    page = st.Page(show, title=title, icon=f":material/{icon}:", url_path=url_path, default=url_path == "drop")
    st.session_state.pages[url_path] = page


def _show_ways() -> None:
    """The ways to all pages but that of one video; Streamlit's own hide behind a sign on a phone."""
    with st.container(horizontal=True, vertical_alignment="center", key="nav"):
        st.html('<span class="ff-brand">ferflow</span>', width="content")
        for url_path, page in st.session_state.pages.items():
            if url_path != "video":
                st.page_link(page)


def _follow_links() -> None:
    """Let links of the class `ff-within` lead to another page within this session."""
    global _links
    if _links is None:
        _links = st.components.v2.component("ferflow_links", js=_FOLLOW_LINKS)
    _links(key="links", height=0)


def main() -> None:
    """Show the page that is asked for."""
    st.set_page_config(page_title="ferflow", page_icon="🙂", layout="wide")
    st.session_state.pages = {}
    _page(drop.show, "Drop", "upload", "drop")
    _page(videos_page.show, "Videos", "video_library", "videos")
    _page(video.show, "Video", "movie", "video")
    _page(model_page.show, "Model", "insights", "model")
    _page(live_page.show, "Live", "videocam", "live")
    page = st.navigation(list(st.session_state.pages.values()), position="hidden")
    theme.apply()
    _show_ways()
    _follow_links()
    page.run()


main()
