"""Who may ask: this machine's own browser, or whoever holds the token; and for reading alone."""

from __future__ import annotations

import re
import secrets

from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOCAL = frozenset({"127.0.0.1", "localhost", "::1"})
COOKIE = "steadygrad-token"
_HOST = re.compile(r"([A-Za-z0-9._-]+|\[[0-9a-fA-F:.]+\])(:[0-9]{1,5})?")
"""A name or an address, and a port: no user, no path, nothing that others might read otherwise."""
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
        "connect-src 'self'; img-src data: blob:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """Refuses what a page from elsewhere, or somebody else's browser, asks.

    Args:
        app: what is guarded.
        token: what has to be shown; empty where only this machine can ask, by its own names.
    """

    def __init__(self, app: ASGIApp, token: str = "") -> None:
        self._app, self._token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass on."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                fixed = [(k.lower().encode(), v.encode()) for k, v in HEADERS.items()]
                message["headers"] = [*message.get("headers", []), *fixed]
            await send(message)

        refusal = self._refusal(Request(scope))
        await (refusal or self._app)(scope, receive, with_headers)

    def _refusal(self, request: Request) -> Response | None:
        if request.method not in ("GET", "HEAD"):
            return PlainTextResponse("this page only reads", 405)
        hosts, origin = request.headers.getlist("host"), request.headers.get("origin")
        named = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
        if named is None:
            return PlainTextResponse("no address", 403)
        if not self._token and named[1].lower().strip("[]") not in LOCAL:
            return PlainTextResponse("served to this machine alone: use 127.0.0.1", 403)
        if origin is not None and origin not in (f"http://{hosts[0]}", f"https://{hosts[0]}"):
            return PlainTextResponse("not for pages from elsewhere", 403)
        site, mode = (request.headers.get(f"sec-fetch-{name}") for name in ("site", "mode"))
        if site in ("cross-site", "same-site") and mode != "navigate":
            return PlainTextResponse("not for pages from elsewhere", 403)
        return self._without_token(request) if self._token else None

    def _without_token(self, request: Request) -> Response | None:
        shown = request.query_params.get("token")
        if shown is not None and self._is_token(shown):
            here = "/" + request.url.path.lstrip("/")  # of two slashes a browser makes a host
            answer = RedirectResponse(here, 303)  # out of the address bar
            answer.set_cookie(COOKIE, self._token, httponly=True, samesite="strict")
            return answer
        if self._is_token(request.cookies.get(COOKIE, "")):
            return None
        return PlainTextResponse("open the address with the token that steadygrad printed", 403)

    def _is_token(self, shown: str) -> bool:
        return secrets.compare_digest(shown.encode(), self._token.encode())
