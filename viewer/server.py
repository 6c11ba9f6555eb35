"""viewer/app.py + the results' files -> what `streamlit run` serves"""

import contextlib
import gc
import importlib
from collections.abc import AsyncIterator
from pathlib import Path

from starlette.middleware import Middleware
from streamlit.config import get_option
from streamlit.starlette import App

from viewer.files import routes
from viewer.hosts import OwnRequests
from viewer.settings import watching

_PAGES = ("drop", "live_page", "model_page", "video", "videos_page")


@contextlib.asynccontextmanager
async def ready(_app: App) -> AsyncIterator[None]:
    """Load what the pages need before anybody waits for it, and have the collector of garbage pass that over.

    Streamlit collects after each step of a slider; to look through all modules for that takes it 50 ms.
    """
    for name in ("duckdb", *(f"viewer.{page}" for page in _PAGES)):
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    yield


_names = [*watching().page_names, *filter(None, [get_option("server.address")])]
app = App(
    Path(__file__).with_name("app.py"),
    routes=routes,
    middleware=[Middleware(OwnRequests, names=_names)],
    lifespan=ready,
)
"""The page, with the routes by which a browser fetches annotated videos and tables a piece at a time."""
