"""The sentences of a calibration: what to type, why, and what to beware of."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from steadygrad.calibration.estimate import Setback, two_digits
from steadygrad.calibration.result import Calibration, Outcome
from steadygrad.paths import as_typed
from steadygrad.robust import Floats
from steadygrad.text import percent, times

if TYPE_CHECKING:
    from steadygrad.runlog import Run
    from steadygrad.runlog.encode import Rows
    from steadygrad.runlog.info import RunInfo

OFTEN, NEARLY_ALWAYS = 0.10, 0.50


def judge(norms: Floats, median: float, max_norm: float) -> Outcome:
    """What a fixed threshold would have done to ``norms``, ``[steps]``."""
    over = norms[norms > max_norm]
    rate = over.size / norms.size
    coef = float(np.median(max_norm / over)) if over.size else 1.0
    if not over.size:
        verdict = "never acts"
    elif rate > NEARLY_ALWAYS:
        verdict = "clips nearly always"
    else:
        verdict = "clips often" if rate > OFTEN else "clips the spikes"
    return Outcome(max_norm, rate, coef, verdict)


def advise(
    c: Calibration,
    run: Run,
    rows: Rows,
    back: Setback | None,
    rise: tuple[float, float] | None,
) -> Calibration:
    """The calibration with its advice written."""
    info, clipped = run.info, float((rows["coef"] < 1).mean())
    sentences = [
        _what_to_type(c, info, clipped),
        *(_set_back(c, back) if back else _failed(rise, info)),
        *_moving(c, info),
        *_broken(c, as_typed(run.path)),
        *_defaults(c),
        *_was_clipped(clipped),
    ]
    optimizers = len(info.get("optimizers") or ())
    if optimizers > 1:
        sentences.append(
            f"The run has {optimizers} optimizers; these figures are optimizer {c.optimizer}'s."
        )
    return dataclasses.replace(c, advice=tuple(sentences))


def typed(spec: str, info: RunInfo) -> str:
    """A spec as the one who recorded this run can give it: as an option, a magic, an argument.

    Args:
        spec: a clip spec.
        info: what the run file says of the run.

    Returns:
        The words to type.

    Example:
        >>> typed("auto", {"observed_by": "run"}), typed("auto", {"observed_by": "attach"})
        ('--clip auto', 'clip="auto"')
    """
    observed_by = str(info.get("observed_by") or "run")
    ways = {"run": f"--clip {spec}", "cell": f"%%steadygrad --clip {spec}"}
    return ways.get(observed_by, f'clip="{spec}"')


def label(c: Calibration) -> tuple[str, str]:
    """What is recommended, in a word or two, and its value.

    A run whose norm moves has no one threshold to recommend.
    """
    if not c.stationary:
        return ("Recommended" if c.needed else "As insurance"), c.spec
    return ("Recommended threshold" if c.needed else "Threshold, as insurance"), f"{c.threshold:g}"


def _what_to_type(c: Calibration, info: RunInfo, clipped: float) -> str:
    level = times(c.threshold / c.median)
    place = f"threshold {c.threshold:g} is {level} the median norm {c.median:.3g}"
    rate = f"it would have clipped {percent(c.clip_rate)} of the steps"
    if not c.needed:
        return (
            f"{_calm(c, clipped)} As insurance type {typed(c.spec, info)}; the {place}, and {rate}."
        )
    below = ""
    tops = sorted(s.norm for s in c.spikes if s.norm > c.threshold)
    if tops:
        span = f"{tops[0]:.3g}" if len(tops) == 1 else f"{tops[0]:.3g} to {tops[-1]:.3g}"
        below = f", below {len(tops)} spike{'s' * (len(tops) > 1)} of {span}"
    return (
        f"Type {typed(c.spec, info)}. The {place}{below}; {rate} "
        f"(95 % interval {c.interval[0]:.3g} to {c.interval[1]:.3g})."
    )


def _calm(c: Calibration, clipped: float) -> str:
    """What a run without spikes, NaN or a loss that came back says of the need of a clip."""
    no_spikes = f"no spikes in {c.steps} steps, the peak is {times(c.peak / c.median)} the median"
    if clipped >= OFTEN:
        return (
            f"With {percent(clipped)} of its steps clipped, this run has {no_spikes}; without that "
            "clip it may have."
        )
    if not c.stationary and c.drift > 1:
        return f"The norm rises {times(c.drift)} over this run, with {no_spikes}."
    return f"Nothing in this run called for clipping: {no_spikes}."


def _failed(rise: tuple[float, float] | None, info: RunInfo) -> list[str]:
    if rise is None:
        return []
    return [
        f"The loss rose from {rise[0]:.3g} to {rise[1]:.3g}: the norms of a training that fails "
        "are no guide, so nothing over 1 is recommended. Record one with "
        f"{typed('auto', info)} or a lower "
        "learning rate, and calibrate that."
    ]


def _set_back(c: Calibration, back: Setback) -> list[str]:
    return [
        f"The loss fell from {back.first:.3g} to {back.lowest:.3g} by step {c.last_step} and was "
        f"back at {back.after:.3g} after it: some steps are too large. The figures rest on the "
        f"{c.steps} steps before, and the threshold is their median norm, or 1 if that is less. "
        "A learning rate a third to a tenth of this one may do better still; record a run with "
        "either, and calibrate that."
    ]


def _moving(c: Calibration, info: RunInfo) -> list[str]:
    if c.stationary:
        return []
    factor = c.drift if c.drift > 1 else 1 / c.drift
    last = c.threshold * c.drift**0.5
    first = c.threshold / c.drift**0.5
    start, end = two_digits(first), two_digits(last)
    schedule = f"norm-schedule:{start},to={end},over={c.last_step - c.first_step + 1}"
    return [
        f"The norm is {c.trend}: {times(factor)} over the run. One fixed threshold is too "
        "tight at one end and too loose at the other: use a method that follows the norm, "
        f"{typed('auto', info)} or {typed('zclip', info)}, or a schedule, "
        f"{typed(schedule, info)}; fixed, {typed(f'norm:{c.threshold:g}', info)} is the "
        "compromise."
    ]


def _broken(c: Calibration, path: str) -> list[str]:
    sentences = []
    if c.diverged_at is not None:
        sentences.append(
            f"From step {c.diverged_at} the norms are 100 times over their level and never return; "
            "the figures rest on the steps before. Clipping helps if spikes caused this; if the "
            "learning rate is too high, lower it."
        )
    if c.nonfinite:
        sentences.append(
            f"{c.nonfinite} steps had a NaN or inf norm and are left out: a clip cannot "
            "undo one that an operation has made. Find their origin with: "
            f"steadygrad diagnose {path}"
        )
    return sentences


def _defaults(c: Calibration) -> list[str]:
    parts = [
        f"{o.max_norm:g} {o.verdict}" + (f" ({percent(o.clip_rate)})" if o.clip_rate else "")
        for o in c.defaults
    ]
    sentences = [f"The common defaults here: {', '.join(parts)}."]
    one = next(o for o in c.defaults if o.max_norm == 1.0)
    if one.clip_rate > NEARLY_ALWAYS:
        sentences.append(
            f"At 1.0 the typical step is multiplied by {one.coef:.2g}: with SGD that is a smaller "
            "learning rate under another name; with Adam it mostly cancels, spikes excepted."
        )
    return sentences


def _was_clipped(clipped: float) -> list[str]:
    if clipped < OFTEN:
        return []
    return [
        f"The recorded run was itself clipped in {percent(clipped)} of its steps. Norms before "
        "clipping were used, but a run with this threshold takes another path: record it and "
        "calibrate once more."
    ]
