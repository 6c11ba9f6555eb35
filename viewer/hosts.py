"""a browser's request -> passed on if it is for this page by one of its names and from itself, else refused

Any page that somebody has open elsewhere can make a name of its own lead to this machine (DNS rebinding), or open a
WebSocket to it. Streamlit's own `server.allowedHosts` covers WebSockets alone, and to judge a foreign Origin it asks a
server outside for this machine's address.
"""

import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

_READING = ("GET", "HEAD")


class OwnRequests:
    """Middleware that lets through what is meant for this page."""

    def __init__(self, app: ASGIApp, *, names: Sequence[str]) -> None:
        """Numeric addresses and localhost are always among the names: nobody else can make those lead here."""
        self._app = app
        self._names = {"localhost", *(name.lower() for name in names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with 403 and a sentence."""
        if scope["type"] in ("http", "websocket"):
            headers = Headers(scope=scope)
            host, origin = headers.get("host", ""), headers.get("origin")
            refusal = None
            if not _is_known(host, self._names):
                refusal = f"This page does not go by the name {host}. Who runs it can add the name to page_names."
            elif origin is not None and scope.get("method") not in _READING and urlsplit(origin).netloc != host:
                refusal = f"This page takes nothing from {origin}."
            if refusal is not None:
                await PlainTextResponse(refusal, 403)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _is_known(host: str, names: set[str]) -> bool:
    try:
        name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
        if name in names:
            return True
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
