"""a video's id -> the page of the Prefect run that analysed it, if a server is named and knows it"""

import os

import httpx

from ferflow.storage import Results

_PATIENCE_SECONDS = 2.0


def run_url(results: Results, video_id: str) -> str | None:
    """The address of the newest run with a page on this video's result; None without a server, or if none answers.

    Runs leave a page a video as an artifact of this key, see `flows.run_page`. Earlier versions had the same for every
    folder.
    """
    api = os.environ.get("PREFECT_API_URL", "").rstrip("/")
    if not api:
        return None
    login = os.environ.get("PREFECT_API_AUTH_STRING", "").partition(":")
    keys = [results.key(video_id), f"video-{video_id}"]
    question = {"artifacts": {"key": {"any_": keys}}, "sort": "KEY_DESC"}
    try:
        answer = httpx.post(
            f"{api}/artifacts/latest/filter",
            json=question,
            auth=(login[0], login[2]) if login[1] else None,
            timeout=_PATIENCE_SECONDS,
        )
        found = answer.raise_for_status().json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError):
        return None
    run_id = found[0].get("flow_run_id") if found else None
    page = os.environ.get("PREFECT_UI_URL", api.removesuffix("/api")).rstrip("/")
    return f"{page}/runs/flow-run/{run_id}" if run_id else None
