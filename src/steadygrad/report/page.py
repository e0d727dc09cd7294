"""The report as one HTML file that needs no network.

Text is laid out by Jinja with autoescaping, so that it reads, prints and
survives without JavaScript; charts are drawn in the page from the same JSON
that is written beside it. Names come from the run and are hostile until
proven otherwise: a content security policy allows the page's own scripts by
their hashes and nothing else, neither inline handlers nor any request.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import time
from collections.abc import Iterable, Sequence
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

from steadygrad import extensions
from steadygrad.report.key_figures import overhead
from steadygrad.report.model import ReportData, RunData
from steadygrad.report.numbers import duration, figure

if TYPE_CHECKING:
    from jinja2 import Template
    from markupsafe import Markup


def render(report: ReportData, *, live: str = "") -> str:
    """Lay a report out as HTML.

    Args:
        report: as `build` makes it.
        live: what a served page asks to hear of, as a query; empty for a page that stands alone.

    Returns:
        The whole page.
    """
    from markupsafe import Markup

    runs = [{**run, "facts": facts(run)} for run in report["runs"]]
    return _template().render(
        live=live,
        report={**report, "runs": runs, "overhead": overhead_sentence(report["runs"])},
        data=Markup(script_json(report)),  # nosec B704
        css=Markup(asset("page.css")),  # nosec B704
        **({} if live else _embedded()),
    )


@cache
def _embedded() -> dict[str, Markup | str]:
    """The scripts of a page that stands alone, and the policy that lets them run."""
    from markupsafe import Markup

    scripts = {name: asset(f"{name}.js") for name in ("early", "late")}
    scripts |= {"plotly": plotly_script(), "script": asset("page.js")}
    policy = content_policy(scripts.values())
    return {"policy": policy, **{name: Markup(text) for name, text in scripts.items()}}  # nosec B704


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(_filters())
    return environment.from_string(asset("page.html"))


def script_json(value: object) -> str:
    """JSON that no browser can read as markup, whatever strings it holds.

    Example:
        >>> script_json({"name": "</script>"})
        '{"name":"\\\\u003c/script\\\\u003e"}'
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def content_policy(scripts: Iterable[str]) -> str:
    """A content security policy: these scripts, inline styles, drawn images; nothing else."""
    hashes = (base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts)
    allowed = " ".join(f"'sha256-{h}'" for h in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def facts(run: RunData) -> list[tuple[str, str]]:
    """What is known of how a run was made, label and text, unknown ones left out."""
    info = run["info"]
    command, versions = info.get("command"), info.get("versions")
    started = info.get("started")
    values = {
        "Command": " ".join(map(str, command)) if isinstance(command, list) else command,
        "Policy": info.get("policy"),
        "Not finite": info.get("on_nonfinite"),
        "Optimizers": ", ".join(o["name"] for o in run["optimizers"]),
        "Started": _moment(started),
        "Ended": info.get("exit"),
        "Seed": info.get("seed"),
        "Device": info.get("device"),
        "Python": info.get("python"),
        "Versions": ", ".join(f"{k} {v}" for k, v in versions.items())
        if isinstance(versions, dict)
        else None,
        "System": info.get("platform"),
        "Kernel": extensions.advice(str(info.get("kernel", ""))),
    }
    return [(label, str(value)) for label, value in values.items() if value not in (None, "")]


def overhead_sentence(runs: Sequence[RunData]) -> str:
    """What recording itself cost; empty where that is not known."""
    parts = []
    for run in runs:
        spent, share = overhead(run["info"])
        if math.isfinite(spent):
            of = "" if math.isnan(share) else f", {100 * share:.2g} % of the run"
            parts.append((run["name"], f"{duration(spent)}{of}"))
    if len(runs) == 1:
        return f"Recording took {parts[0][1]}." if parts else ""
    return (
        "Recording took " + "; ".join(f"{cost} ({name})" for name, cost in parts) + "."
        if parts
        else ""
    )


def _moment(seconds: object) -> str | None:
    if not isinstance(seconds, int | float) or not math.isfinite(seconds):
        return seconds if isinstance(seconds, str) else None
    return time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(seconds))


def _filters() -> dict[str, object]:
    from steadygrad.text import percent

    return {
        "figure": figure,
        "percent": percent,
        "share": lambda value: f"{100 * value:.0f} %",
        "letter": lambda index: chr(ord("A") + index % 26),
        "is_link": lambda text: str(text).startswith(("https://", "http://")),
    }


@cache
def asset(name: str, room: str = "report") -> str:
    """The text of a file that ships beside the code.

    Args:
        name: the file's name, or its way from the room's folder.
        room: the package that it belongs to.
    """
    return resources.files(f"steadygrad.{room}").joinpath(name).read_text(encoding="utf-8")


@cache
def plotly_script() -> str:
    """plotly.js, the bundle for scatter, bar and heat map (`tools/renew_plotly.py` renews it)."""
    text = asset("plotly/plotly-cartesian.min.js")
    if "</script" in text.lower():
        raise RuntimeError("this version of plotly.js cannot stand inside a script element")
    return compiled_at_once(text)


def compiled_at_once(script: str) -> str:
    """Parenthesise the one function that holds all of plotly.js.

    Browsers read a function without parentheses twice: to skip it, then when it is called. For
    megabytes of code that is a fifth of the time that the page takes to open.

    Example:
        >>> compiled_at_once("(function(f) {f()} (this, () => {\\n return 1;\\n}));")
        '(function(f) {f()} (this, (() => {\\n return 1;\\n})));'
    """
    body = script.rstrip()
    if body.count(_FACTORY) != 1 or not body.endswith("}));"):
        return script  # another version, wrapped in another way
    return body.replace(_FACTORY, "this, (() => {\n").removesuffix("}));") + "})));"


_FACTORY = "this, () => {\n"
