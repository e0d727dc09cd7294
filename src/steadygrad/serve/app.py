"""What is served: the list, a report, what changes, and the files that draw them."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from functools import partial
from urllib.parse import urlencode

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from steadygrad.errors import RunFileError
from steadygrad.report.page import asset, plotly_script, render
from steadygrad.serve.folder import Folder
from steadygrad.serve.guard import Guard

BEAT_SECONDS = 0.3
QUIET_BEATS = 50
"""Beats without news until a comment is sent: so a closed page is noticed."""
MOST_RUNS = 12
STREAM = "text/event-stream"


def application(folder: Folder, token: str = "") -> Guard:
    """The ASGI application over a folder.

    Args:
        folder: not yet started; it is watched as long as the application lives.
        token: as `Guard` takes it.
    """

    @contextlib.asynccontextmanager
    async def watching(app: Starlette) -> AsyncIterator[None]:
        folder.start()
        yield
        await run_in_threadpool(folder.stop)

    async def front(request: Request) -> Response:
        return HTMLResponse(asset("list.html", "serve"))

    async def report(request: Request) -> Response:
        keys = _keys(request)
        try:
            page = await run_in_threadpool(_page, folder, keys)
        except RunFileError as error:
            return PlainTextResponse(str(error), 404)
        except Exception as error:  # a made file may break a rule: this answer ends, not the server
            message = f"no report could be made of this run ({type(error).__name__})"
            return PlainTextResponse(message, 422)
        return HTMLResponse(page)

    async def events(request: Request) -> Response:
        if request.method == "HEAD":  # has an end
            return Response(media_type=STREAM)
        keys, mark = _keys(request), request.query_params.get("mark")
        news = _of_runs(folder, keys, mark) if keys else _of_list(folder)
        return StreamingResponse(_events(request, news), media_type=STREAM)

    routes = [
        Route("/", front),
        Route("/report", report),
        Route("/events", events),
        Route("/assets/{name}", _send_asset),
    ]
    made = Starlette(routes=routes, lifespan=watching)
    made.router.redirect_slashes = False  # to an address made of what was asked
    return Guard(made, token)


def _page(folder: Folder, keys: tuple[str, ...]) -> str:
    if not keys:
        raise RunFileError("name a run: the list at / has an address for each")
    report, mark = folder.report(keys)
    return render(report, live=urlencode({"runs": ",".join(keys), "mark": mark}))


def _keys(request: Request) -> tuple[str, ...]:
    asked = request.query_params.get("runs", "").split(",")
    return tuple(dict.fromkeys(filter(None, asked)))[:MOST_RUNS]


def _of_list(folder: Folder) -> Callable[[], object]:
    version = -1

    def news() -> object:
        nonlocal version
        if folder.version == version:
            return None
        changes = folder.changes(version)
        version = changes["version"]
        return changes

    return news


def _of_runs(folder: Folder, keys: tuple[str, ...], mark: str | None) -> Callable[[], object]:
    """News since the contents that a page shows; what changed before it listened is news too."""
    seen = mark or folder.mark(keys)

    def news() -> object:
        nonlocal seen
        now = folder.mark(keys)
        changed, seen = now != seen, now
        return {"changed": True} if changed else None

    return news


async def _events(request: Request, news: Callable[[], object]) -> AsyncIterator[str]:
    yield ": open\n\n"
    quiet = 0
    while not await request.is_disconnected():
        latest = news()
        quiet = quiet + 1 if latest is None else 0
        if latest is not None:
            yield f"data: {json.dumps(latest, allow_nan=False)}\n\n"
        elif quiet % QUIET_BEATS == 0:
            yield ": still here\n\n"
        await asyncio.sleep(BEAT_SECONDS)


async def _send_asset(request: Request) -> Response:
    made = ASSETS.get(request.path_params["name"])
    if made is None:
        return PlainTextResponse("no such file", 404)
    kind, text = made
    return Response(text(), media_type=kind)


SCRIPT, STYLE = "text/javascript", "text/css"
ASSETS: dict[str, tuple[str, Callable[[], str]]] = {
    "early.js": (SCRIPT, partial(asset, "early.js")),
    "page.js": (SCRIPT, partial(asset, "page.js")),
    "page.css": (STYLE, partial(asset, "page.css")),
    "plotly.js": (SCRIPT, plotly_script),
    "live.js": (SCRIPT, partial(asset, "live.js", "serve")),
    "list.js": (SCRIPT, partial(asset, "list.js", "serve")),
    "list.css": (STYLE, partial(asset, "list.css", "serve")),
}
