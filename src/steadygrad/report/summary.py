"""A run as one JSON object: what the page, its twin and the terminal all show.

Everything that is said is worked out here, once; the reporters only lay it out.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from steadygrad._version import __version__
from steadygrad.errors import UsageError
from steadygrad.report.comparison import comparison
from steadygrad.report.curves import series
from steadygrad.report.headline import verdict
from steadygrad.report.heatmap import heatmap
from steadygrad.report.key_figures import key_figures
from steadygrad.report.model import Picture, Recommendation, Refused, ReportData, RunData
from steadygrad.report.numbers import plain
from steadygrad.report.optimizers import name_of, rows_of_each
from steadygrad.report.origins import with_origins
from steadygrad.report.thresholds import thresholds
from steadygrad.report.through_time import through_time
from steadygrad.rules.evidence.view import View
from steadygrad.text import printable

if TYPE_CHECKING:
    from steadygrad.runlog import Run

FORMAT = 1


def build(
    runs: Sequence[Run | str | os.PathLike[str]], *, title: str = "", notes: Sequence[str] = ()
) -> ReportData:
    """Everything a report says about one run or several.

    Args:
        runs: open runs or paths of run files; two or more are also compared.
        title: what stands at the top; by default the script's or the file's name.
        notes: sentences of the caller's, shown under the verdict.

    Returns:
        Strict JSON data: ``format``, ``title``, ``notes``, ``runs`` and ``comparison``
        (None for one run).

    Raises:
        UsageError: no run was given.
        RunFileError: a path is no run file.

    Example:
        >>> import numpy as np
        >>> from steadygrad.runlog import Run
        >>> run = Run.from_arrays(steps={"norm": np.linspace(1.0, 2.0, 50)})
        >>> build([run])["runs"][0]["verdict"]["word"]
        'Steady'
    """
    from steadygrad.runlog import as_run

    if not runs:
        raise UsageError("no run to report on: type  steadygrad report RUN.db")
    opened = [as_run(run) for run in runs]
    names = _names(opened)
    summaries = [summarise(run, name) for run, name in zip(opened, names, strict=True)]
    return joined(opened, summaries, title=title, notes=notes)


def joined(
    runs: Sequence[Run],
    summaries: Sequence[RunData],
    *,
    title: str = "",
    notes: Sequence[str] = (),
) -> ReportData:
    """The report over runs that were summarised.

    Args:
        runs: open runs.
        summaries: what `summarise` said of each.
        title: what stands at the top.
        notes: sentences shown under the verdict.

    Returns:
        As `build`.
    """
    return {
        "format": FORMAT,
        "steadygrad": __version__,
        "title": title or _title(runs, [run["name"] for run in summaries]),
        "notes": list(notes),
        "runs": list(summaries),
        "comparison": comparison(runs, summaries) if len(summaries) > 1 else None,
    }


def summarise(run: Run, name: str, *, quick: bool = False) -> RunData:
    """One run: verdict, recommendation, figures, findings, curves, thresholds, heat map.

    Args:
        run: the run.
        name: what to call it.
        quick: of a long run judge some steps only (`thinned`), and draw no heat map; figures and
            curves are of all steps.

    Returns:
        Strict JSON data.
    """
    from steadygrad.rules import diagnose, stability
    from steadygrad.runlog.thinning import thinned

    judged = thinned(run) if quick else run
    findings = diagnose(judged)
    judgement = verdict(run, findings)
    of_each = rows_of_each(run)
    pictures = [thresholds(judged, number) for number in of_each]
    return {
        "name": name,
        "verdict": {
            "level": judgement.level,
            "word": judgement.word,
            "sentence": judgement.sentence,
        },
        "recommendation": _recommendation(run, pictures),
        "figures": key_figures(run),
        "stability": stability(run).to_dict(),
        "findings": with_origins(findings, run),
        "optimizers": [{"number": number, "name": name_of(run, number)} for number in of_each],
        "series": [series(rows, View(run, number).acts) for number, rows in of_each.items()],
        "thresholds": pictures,
        "heatmap": heatmap(run) if judged is run else None,
        "through_time": through_time(judged),
        "info": plain(run.info),
    }


def sketch(run: Run, name: str) -> RunData:
    """What of `summarise` needs no rules: figures and curves, and a verdict that says so.

    Args:
        run: the run.
        name: what to call it.

    Returns:
        The same keys; nothing in it is a judgement.
    """
    of_each = rows_of_each(run)
    waiting = "The rules are being applied to this run; this page follows by itself."
    return {
        "name": name,
        "verdict": {"level": "empty", "word": "Not judged yet", "sentence": waiting},
        "recommendation": {**_recommendation(run, []), "reason": waiting},
        "figures": key_figures(run),
        "stability": None,
        "findings": [],
        "optimizers": [{"number": number, "name": name_of(run, number)} for number in of_each],
        "series": [series(rows, View(run, number).acts) for number, rows in of_each.items()],
        "thresholds": [],
        "heatmap": None,
        "through_time": [],
        "info": plain(run.info),
    }


def with_judgement(drawn: RunData, judged: RunData) -> RunData:
    """What was drawn of a run, and what the rules said of it before.

    Args:
        drawn: as `sketch` gives it.
        judged: as `summarise` gave it.
    """
    return {
        **drawn,
        "verdict": judged["verdict"],
        "recommendation": judged["recommendation"],
        "stability": judged["stability"],
        "findings": judged["findings"],
        "thresholds": judged["thresholds"],
    }


def _recommendation(run: Run, pictures: Sequence[Picture | Refused]) -> Recommendation:
    """The threshold to use, with its reason; of the optimizer with the most usable steps."""
    usable = [picture for picture in pictures if "threshold" in picture]
    if not usable:
        refused = [picture["refused"] for picture in pictures if "threshold" not in picture]
        reason = refused[0] if refused else "no step was recorded"
        return {"threshold": None, "spec": None, "needed": None, "reason": reason, "more": []}
    best = max(usable, key=lambda p: p["steps"])
    first, *more = best["advice"]
    owner = f"{name_of(run, best['optimizer'])}: " if len(pictures) > 1 else ""
    return {
        "threshold": best["threshold"],
        "spec": best["spec"],
        "needed": best["needed"],
        "optimizer": best["optimizer"],
        "label": f"{owner}{best['label']}",
        "value": best["value"],
        "typed": best["typed"],
        "reason": first,
        "more": more,
    }


def _names(runs: Sequence[Run]) -> list[str]:
    stems = [printable(run.path.stem) if run.path else f"run {i + 1}" for i, run in enumerate(runs)]
    if len(set(stems)) == len(stems):
        return stems
    return [f"{stem} ({i + 1})" for i, stem in enumerate(stems)]


def _title(runs: Sequence[Run], names: Sequence[str]) -> str:
    script = str(runs[0].info.get("script") or "")
    return Path(script).name or " · ".join(names)
