"""A calibration as text for the terminal, or as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from steadygrad.calibration.advice import label
from steadygrad.calibration.recommending import calibrate
from steadygrad.calibration.replaying import replay
from steadygrad.calibration.result import Calibration
from steadygrad.errors import CalibrationError
from steadygrad.text import percent, printable, times

if TYPE_CHECKING:
    from steadygrad.runlog import Run

BAR = 40
MOST_OTHERS = 3


def show(
    run: Run | str | os.PathLike[str],
    *,
    optimizer: int | None = None,
    replays: Sequence[str] = (),
    as_json: bool = False,
) -> str:
    """Calibrate a run and say what came out.

    Args:
        run: a run, or the path of a run file.
        optimizer: number of the optimizer; by default the one with the most steps.
        replays: specs of policies to replay against the run.
        as_json: one JSON object instead of text; with several optimizers and none asked for, it
            holds each one's under ``optimizers``.

    Returns:
        The text, without a final newline.

    Raises:
        CalibrationError: the run gives no threshold, and why.
        SpecError: a spec in ``replays`` that cannot be read.
    """
    calibration = calibrate(run, optimizer=optimizer)
    played = [replay(run, spec, optimizer=calibration.optimizer) for spec in replays]
    if as_json:
        plain = calibration.to_dict()
        if played:
            plain["replays"] = [p.to_dict() for p in played]
        if optimizer is None:
            plain |= _each(run)
        return json.dumps(plain, indent=2)
    lines = [*calibration.advice, "", *_figures(calibration), "", *_curve(calibration)]
    if played:
        lines += ["", *(f"{p.sentence}." for p in played)]
    if optimizer is None:
        lines += _others(run, calibration.optimizer)
    return str(printable("\n".join(lines)))


def _each(run: Run | str | os.PathLike[str]) -> dict[str, list[dict[str, object]]]:
    """What is recommended for each optimizer, where the run has several."""
    from steadygrad.runlog import as_run

    opened = as_run(run)
    numbers = sorted({int(number) for number in opened.steps["optimizer"]})
    return {"optimizers": [_of(opened, n) for n in numbers]} if len(numbers) > 1 else {}


def _of(run: Run, number: int) -> dict[str, object]:
    try:
        return calibrate(run, optimizer=number).to_dict()
    except CalibrationError as error:
        return {"optimizer": number, "refused": str(error)}


def _others(run: Run | str | os.PathLike[str], shown: int) -> list[str]:
    """A line for each optimizer of the run that the text is not about."""
    from steadygrad.runlog import as_run

    opened = as_run(run)
    others = sorted({int(number) for number in opened.steps["optimizer"]} - {shown})
    lines = []
    for number in others[:MOST_OTHERS]:
        try:
            what, value = label(calibrate(opened, optimizer=number))
        except CalibrationError as error:
            what, value = "No threshold", str(error)
        lines.append(f"Optimizer {number}: {what}: {value}. All of it: --optimizer {number}")
    left = len(others) - len(lines)
    return ([""] if lines else []) + lines + ([f"and {left} more optimizers"] if left else [])


def _figures(c: Calibration) -> list[str]:
    rows = [
        (
            "threshold",
            f"{c.threshold:g}   (95 % interval {c.interval[0]:.3g} to {c.interval[1]:.3g})",
        ),
        ("median norm", f"{c.median:.4g}   (95th percentile {c.percentiles['95']:.4g})"),
        ("peak", f"{c.peak:.4g}"),
        ("spikes", _spikes(c)),
        ("trend", c.trend if c.stationary else f"{c.trend}, {times(c.drift)} over the run"),
        ("steps", f"{c.steps} (numbers {c.first_step} to {c.last_step})"),
    ]
    return [f"{name:<12}  {text}" for name, text in rows]


def _spikes(c: Calibration) -> str:
    worst = sorted(c.spikes, key=lambda s: -s.factor)[:3]
    named = ", ".join(f"step {s.step} ({times(s.factor)})" for s in worst)
    return f"{len(c.spikes)}: {named}" if c.spikes else "none"


def _rates(c: Calibration) -> dict[float, float]:
    """Thresholds that say something, and the exact share of the steps over each."""
    rates = dict(max(at for at in c.curve if at[0] <= c.percentiles[p]) for p in ("50", "95"))
    rates[c.peak] = 0.0
    rates.update((outcome.max_norm, outcome.clip_rate) for outcome in c.defaults)
    rates[c.threshold] = c.clip_rate
    return rates


def _curve(c: Calibration) -> list[str]:
    """Thresholds and their clip rates, as bars."""
    lines = ["  max_norm  clips"]
    for mark, rate in sorted(_rates(c).items()):
        arrow = "  <- recommended" if mark == c.threshold else ""
        lines.append(f"  {mark:<8.3g}  {percent(rate):>11}  {'#' * round(BAR * rate)}{arrow}")
    return lines
