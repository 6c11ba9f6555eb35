"""viewer/app.py + the results' files -> what `streamlit run` serves"""

from pathlib import Path

from starlette.middleware import Middleware
from streamlit.config import get_option
from streamlit.starlette import App

from viewer.files import routes
from viewer.hosts import OwnRequests
from viewer.settings import watching

_names = [*watching().page_names, *filter(None, [get_option("server.address")])]
app = App(Path(__file__).with_name("app.py"), routes=routes, middleware=[Middleware(OwnRequests, names=_names)])
"""The page, with the routes by which a browser fetches annotated videos and tables a piece at a time."""
