"""an address such as /results/<video>/annotated.mp4 -> that file of the results, a piece at a time

So no video is held in memory, and a browser can jump in it. Only what the results' own tables name is given out, and
only what lies within the results.
"""

import tempfile
from pathlib import Path
from urllib.parse import quote

from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route

from ferflow.errors import FerflowError
from ferflow.merged_rows import find_rows, find_video
from ferflow.records import VideoSummary
from ferflow.rows import write_rows
from ferflow.storage import Results, is_local, is_video_id, stat_file, temporary_folder
from viewer.copies import Copies, Copy, here
from viewer.settings import results

ANNOTATED, TIMELINE, PARQUET, CSV = "annotated.mp4", "timeline.png", "faces.parquet", "faces.csv"
"""What there is of each video."""

_KINDS = {".mp4": "video/mp4", ".png": "image/png"}
# What an analysis writes. A row from a stranger may name anything, which no browser may take for a page of ours.
_AS_IT_IS = {"X-Content-Type-Options": "nosniff"}
_copies = Copies(temporary_folder("ferflow-viewer"), most_bytes=10_000_000_000)
# Of a bucket's files.


def url_of(video_id: str, name: str) -> str:
    """The address of a file of a video, from the page's own root."""
    return f"/results/{quote(video_id)}/{name}"


def local_file(place: Results, named: str | None) -> Copy | None:
    """A file that a row of the videos table names, on this machine; None if there is none, or not within the results.

    Of a bucket's file a copy is fetched, which may take its time.

    Raises:
        OSError: the bucket does not answer.
    """
    path = place.named(named)
    try:
        return None if path is None else here(path) if is_local(path) else _copies.take(stat_file(path))
    except FileNotFoundError:
        return None


async def _answer(request: Request) -> Response:
    video_id, name = request.path_params["video_id"], request.path_params["name"]
    if not is_video_id(video_id):
        return PlainTextResponse("There is no such video.", 404)
    try:
        return await run_in_threadpool(_file, results(), video_id, name)
    except (FerflowError, OSError):
        return PlainTextResponse("The results cannot be read at the moment.", 503)


def _file(place: Results, video_id: str, name: str) -> Response:
    summary = find_video(place, video_id)
    if summary is not None and name in (ANNOTATED, TIMELINE):
        copy = local_file(place, summary.annotated_path if name == ANNOTATED else summary.timeline_path)
        if copy is not None:
            file = copy.wait()
            kind = _KINDS.get(file.suffix)
            return FileResponse(
                file,
                filename=_called(summary, file.suffix),
                media_type=kind or "application/octet-stream",
                content_disposition_type="inline" if kind else "attachment",
                headers=_AS_IT_IS,
                background=BackgroundTask(lambda held: None, copy),  # Until it has been sent.
            )
    if summary is not None and name in (PARQUET, CSV):
        rows = find_rows(place, "faces", video_id)
        if rows is not None:
            with tempfile.NamedTemporaryFile(suffix=Path(name).suffix, delete=False) as made:
                path = Path(made.name)
            write_rows(path, rows)
            return FileResponse(
                path,
                filename=_called(summary, path.suffix),
                headers=_AS_IT_IS,
                background=BackgroundTask(path.unlink, missing_ok=True),
            )
    return PlainTextResponse("There is no such file of this video.", 404)


def _called(summary: VideoSummary, suffix: str) -> str:
    """How a file is called when it is taken away."""
    return f"{Path(summary.source).stem}{suffix}"


routes = [Route("/results/{video_id}/{name}", _answer, methods=["GET", "HEAD"])]
"""What `viewer.server` adds to the page's own addresses."""
