"""viewer/app.py + the results' files -> what `streamlit run` serves"""

from pathlib import Path

from streamlit.starlette import App

from viewer.files import routes

app = App(Path(__file__).with_name("app.py"), routes=routes)
"""The page, with the routes by which a browser fetches annotated videos and tables a piece at a time."""
