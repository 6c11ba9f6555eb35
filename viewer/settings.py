"""what `ferflow view` was told -> WatchSettings and Results, as every page reads them"""

import os

from ferflow.storage import Results, absolute, place
from ferflow.watch_settings import TOLD_TO_VIEWER, WatchSettings, load_watch_settings


def watching() -> WatchSettings:
    """Where videos arrive and results lie; the defaults if the page was started by hand."""
    told = os.environ.get(TOLD_TO_VIEWER)
    return WatchSettings.model_validate_json(told) if told else load_watch_settings(None)


def results() -> Results:
    """The results folder or bucket; it may be empty, or not be there yet."""
    return Results(absolute(place(watching().results)))
