"""`calibrate`: a threshold from the norms of a recorded run, with its evidence.

Only norms before clipping are read, so a run that was clipped serves as well as
one that was not; how far it can be trusted is said in the advice.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from steadygrad.calibration import estimate
from steadygrad.calibration.advice import NEARLY_ALWAYS, advise, judge
from steadygrad.calibration.estimate import two_digits
from steadygrad.calibration.result import Calibration, Spike
from steadygrad.calibration.source import open_steps, recorded_norm_type
from steadygrad.calibration.unseen import clipped_before_policy, unseen_clip
from steadygrad.errors import CalibrationError
from steadygrad.paths import as_typed
from steadygrad.robust import Floats, upper_sigma
from steadygrad.text import times

if TYPE_CHECKING:
    from steadygrad.runlog import Run
    from steadygrad.runlog.encode import Rows

MIN_STEPS = 20
MIN_CALM = 10
"""Steps before a setback from which its norms can be judged."""
MOST_RIVALS = 16
"""Optimizers of many steps, beyond which none is asked whether another one is its adversary."""
START_SHARE, START_STEPS = 0.05, 100
COMMON = (0.5, 1.0, 5.0)
ABSURD, TRAVELLED = 1e6, 1e3
"""A median norm, and a change of it over the run, beyond which there is no threshold to tell."""
START_NORMS = 3
MUCH = 10.0
"""Median norm over which the usual threshold of 1 would clip every step of a failed training."""
CAUTIOUS = 1.0
"""The norms of a training that failed are no guide upwards; this is what most start from."""
PERCENTILES = ("1", "5", "10", "25", "50", "75", "90", "95", "99", "99.9")


def calibrate(run: Run | str | os.PathLike[str], *, optimizer: int | None = None) -> Calibration:
    """Recommend a `max_norm` from a recorded run, with the evidence for it.

    The threshold stands three robust standard deviations over the median of the
    log norms, at least 1.25 and at most 4 times that median: over what the run
    does when all is well, under its spikes. The first 5 % of the steps (100 at
    most) count as start-up, and what follows a divergence is left out.

    The norms of a training that failed are no guide upwards. Where the recorded loss fell and
    then lost what it had gained, the threshold is the median norm of the steps before that,
    and at most 1, or none where that median is over 10; where the loss only rose, it is at most 1,
    or none where 1 would clip most steps. A norm that exploded, or moved a thousandfold, gives none
    either.

    Args:
        run: a run, or the path of a run file.
        optimizer: number of the optimizer; by default the one with the most steps.

    Returns:
        The calibration; `Calibration.spec` is what to type.

    Raises:
        CalibrationError: fewer than 20 usable steps, or a run whose norms are no guide; the
            message says why, and which run would give a threshold; one whose gradients were
            clipped out of sight is no guide.
        UsageError: the run has no such optimizer.

    Example:
        >>> import numpy as np
        >>> from steadygrad.runlog import Run
        >>> from steadygrad.runlog.records import STEP_DTYPE
        >>> steps = np.zeros(400, STEP_DTYPE).view(np.recarray)
        >>> steps.step = np.arange(400)
        >>> steps.norm = np.exp(np.random.default_rng(0).normal(0, 0.2, 400))
        >>> steps.norm[[100, 300]] = 50.0
        >>> c = calibrate(Run.from_arrays(steps=steps))
        >>> c.spec, round(c.clip_rate, 4), [s.step for s in c.spikes]
        ('norm:1.9', 0.0053, [100, 300])

    References:
        Pascanu, Mikolov, Bengio. On the difficulty of training recurrent neural
        networks. ICML 2013, section 3.2: the threshold from statistics of the norm.
    """
    return _conclude(_guide(run, optimizer))


def quick_threshold(run: Run) -> float:
    """`calibrate`'s threshold of the optimizer with the most steps, without what it says of it.

    Args:
        run: a run.

    Raises:
        CalibrationError: as `calibrate`.
    """
    return _guide(run, None).threshold


class _Basis:
    """The steps of a run from which its threshold is concluded.

    Args:
        run: the run.
        number: of the optimizer.
        rows: all of its steps.
        used_rows: those with a norm over 0 that is finite.
        stretch: which of those tell what is normal.
        diverged_at: the step from which norms left their range for good; None where they did not.
        setback: where the loss fell and came back.

    Attributes:
        logs: logarithms of the stretch's norms.
        norms: its norms.
        steps: its steps' numbers.
        rise: the loss at the start and at the end, where it rose.
        figure: gives the logarithm of a threshold for such logarithms.
        drift: log change of the norm over the stretch, and whether it moves.
    """

    def __init__(
        self,
        run: Run,
        number: int,
        rows: Rows,
        used_rows: Rows,
        stretch: slice,
        diverged_at: int | None,
        setback: estimate.Setback | None = None,
    ) -> None:
        self.run, self.number, self.rows, self.used_rows = run, number, rows, used_rows
        self.diverged_at, self.setback = diverged_at, setback
        self.steps = used_rows["step"][stretch]
        self.norms = used_rows["norm"][stretch].astype(np.float64)  # exp(log(x)) is not x
        self.logs = np.log(self.norms)
        self.norm_type = recorded_norm_type(run)
        self.rise = None if _has_rival(run, number) else estimate.loss_rise(rows["loss"])
        self.drift = estimate.drift(self.logs)
        self.figure = _middle if setback else estimate.log_threshold

    @property
    def failed(self) -> bool:
        """Whether the loss came back, or only rose."""
        return self.setback is not None or self.rise is not None

    @property
    def threshold(self) -> float:
        """What to clip at, two digits of it."""
        over_the_usual = float(np.exp(self.figure(self.logs)))
        return two_digits(min(over_the_usual, CAUTIOUS) if self.failed else over_the_usual)

    def spikes(self) -> tuple[Spike, ...]:
        """The steps of the stretch that stand over its level."""
        places, heights = estimate.above_level(self.logs)
        return tuple(
            Spike(int(self.steps[i]), float(self.norms[i]), float(np.exp(h)))
            for i, h in zip(places, heights, strict=True)
        )

    def require_a_guide(self) -> None:
        """Refuse where the run says nothing of what the next one needs.

        Raises:
            CalibrationError: says why, and which run would give a threshold.
        """
        change, moving = self.drift
        first = float(np.median(self.used_rows["norm"][:START_NORMS]))
        rise = None if self.setback else self.rise
        _require_a_guide(
            self.norms, change if moving else 0.0, first, rise, self.setback, self.rows["loss"]
        )


def _guide(run: Run | str | os.PathLike[str], optimizer: int | None) -> _Basis:
    """The steps of a run, where they are a guide; raises as `calibrate` does."""
    recorded, number, rows, _ = open_steps(run, optimizer)
    usable = np.isfinite(rows["norm"]) & (rows["norm"] > 0)
    used_rows = rows[usable]
    _require_steps(used_rows.size, rows, recorded)
    _require_norms_before_clipping(recorded, number)
    x = np.log(used_rows["norm"].astype(np.float64))
    end = estimate.divergence(x)
    diverged_at = None if end is None else int(used_rows["step"][end])
    losses = np.asarray(rows["loss"], dtype=np.float64)
    back = None if _has_rival(recorded, number) else estimate.setback(losses)
    calm = int(usable[: back.place].sum()) if back else 0
    if calm >= MIN_CALM:
        calm = calm if end is None else min(calm, end)
        basis = _Basis(recorded, number, rows, used_rows, slice(0, calm), diverged_at, back)
        basis.require_a_guide()
        return basis
    start = min(int(x.size * START_SHARE), START_STEPS, x.size - MIN_STEPS)
    stretch = slice(start, end)
    if x[stretch].size < MIN_STEPS:
        raise CalibrationError(
            f"the norms left their range for good at step {diverged_at}: too early to tell what is "
            f"normal here (needed: {MIN_STEPS} steps). Record a run that lasts longer, for example "
            "with --clip norm:1.0 or a tenth of the learning rate, and calibrate that"
        )
    basis = _Basis(recorded, number, rows, used_rows, stretch, diverged_at)
    basis.require_a_guide()
    return basis


def _has_rival(run: Run, number: int) -> bool:
    """Whether another optimizer's loss falls where this one's rises: neither has failed by that."""
    long = {n: part.rows for n, part in run.parts.items() if part.rows.size >= estimate.RIVAL_STEPS}
    if number not in long or len(long) > MOST_RIVALS:
        return False
    losses = np.asarray(run.steps["loss"], dtype=np.float64)
    mine = losses[long.pop(number)]
    return any(estimate.opposed(mine, losses[rows]) for rows in long.values())


def _require_steps(usable: int, rows: Rows, run: Run) -> None:
    if usable >= MIN_STEPS:
        return
    norm = rows["norm"]
    broken, zero = int((~np.isfinite(norm)).sum()), int((norm == 0).sum())
    parts = [f"{usable} usable of {norm.size} recorded steps"]
    parts += [f"{broken} with a NaN or inf norm"] if broken else []
    parts += [f"{zero} with norm 0"] if zero else []
    raise CalibrationError(
        f"too few steps for a threshold: {', '.join(parts)}; needed: {MIN_STEPS}. "
        "Record a longer run, or find what breaks it with: "
        f"steadygrad diagnose {as_typed(run.path)}"
    )


def _require_norms_before_clipping(run: Run, number: int) -> None:
    if clipped_before_policy(run, number):
        raise CalibrationError(
            "this run gives no threshold: the script's own calls clip before the attached policy, "
            "and norms on record are those after them. Take those calls out, or attach with "
            "clip='none', and calibrate that run"
        )
    clip = unseen_clip(run, number)
    if clip is not None:
        raise CalibrationError(
            "this run gives no threshold: its gradients are clipped out of sight, and norms on "
            f"record are those after it ({clip.sentence}). Take that clip out of the script, "
            "record it with steadygrad run --clip auto, and calibrate that"
        )


def _require_a_guide(
    norms: Floats,
    change: float,
    first: float,
    rise: tuple[float, float] | None,
    back: estimate.Setback | None,
    losses: Floats,
) -> None:
    """Refuse a threshold where the run says nothing of what the next one needs.

    Args:
        norms: of the stable stretch.
        change: log change of the norm over it.
        first: the norm that the run began at.
        rise: the loss at the start and at the end, where it rose.
        back: where the loss fell and came back.
        losses: all of them; where none is known, no size of a norm is absurd.

    Raises:
        CalibrationError: says why, and which run would give one.
    """
    factor, middle = float(np.exp(abs(change))), float(np.median(norms))
    over = float((norms > CAUTIOUS).mean())
    if middle > ABSURD and np.isfinite(losses).any():
        reason = (
            f"its gradients have exploded, or what enters is not scaled (median norm "
            f"{middle:.3g}). Mend what steadygrad diagnose names, record that"
        )
    elif factor > TRAVELLED:
        way = "fell" if change < 0 else "rose"
        reason = (
            f"the norm {way} {times(factor)}, and no one threshold suits both ends. Use a "
            "method that follows the norm (auto, zclip), or record a run that ends where you "
            "would stop"
        )
    elif first > TRAVELLED * middle:
        reason = (
            f"its norms began at {first:.2g} and were at {middle:.2g} for most of it: what is "
            "measured is a training that was over. Record a run that ends where you would stop, "
            "or use a method that follows the norm (auto, zclip)"
        )
    elif rise is not None and over > NEARLY_ALWAYS:
        reason = (
            f"the loss rose from {rise[0]:.3g} to {rise[1]:.3g}, so that its norms are no guide, "
            f"and {CAUTIOUS:g}, the usual start, would clip {100 * over:.0f} % of the steps. "
            "Record one with the method auto, or with a tenth of the learning rate"
        )
    elif back is not None and middle > MUCH:
        reason = (
            f"the loss fell from {back.first:.3g} to {back.lowest:.3g} and was back at "
            f"{back.after:.3g}, at norms of {middle:.3g}, where {CAUTIOUS:g} as usual would "
            "clip every step. Record one with a tenth of the learning rate"
        )
    else:
        return
    raise CalibrationError(f"this run gives no threshold: {reason}, and calibrate that")


def _conclude(basis: _Basis) -> Calibration:
    stable, steps, norms, rows = basis.logs, basis.steps, basis.norms, basis.rows
    change, moving = basis.drift
    threshold = basis.threshold
    low, high = (float(np.exp(v)) for v in estimate.bootstrap(stable, basis.figure))
    spikes, median = basis.spikes(), float(np.median(norms))
    broken = int((~np.isfinite(rows["norm"])).sum())
    evidence = Calibration(
        threshold=threshold,
        median=median,
        peak=float(basis.used_rows["norm"].max()),
        clip_rate=float((norms > threshold).mean()),
        interval=(min(low, threshold), max(high, threshold)),
        stationary=not moving,
        advice=(),
        spec="auto" if moving else _spec(threshold, basis.norm_type),
        needed=bool(spikes) or basis.diverged_at is not None or broken > 0 or basis.failed,
        trend=("rising" if change > 0 else "falling") if moving else "flat",
        drift=float(np.exp(change)),
        percentiles={p: float(np.percentile(norms, float(p))) for p in PERCENTILES},
        spikes=spikes,
        curve=_curve(norms),
        defaults=tuple(judge(norms, median, t) for t in COMMON),
        sigma=upper_sigma(stable, float(np.median(stable))),
        steps=int(stable.size),
        first_step=int(steps[0]),
        last_step=int(steps[-1]),
        nonfinite=broken,
        diverged_at=basis.diverged_at,
        norm_type=basis.norm_type,
        optimizer=basis.number,
    )
    return advise(evidence, basis.run, rows, basis.setback, basis.rise)


def _spec(threshold: float, norm_type: float) -> str:
    return f"norm:{threshold}" + ("" if norm_type == 2 else f",p={norm_type}")


def _middle(x: Floats) -> float:
    return float(np.median(x))


def _curve(norms: Floats, points: int = 61) -> tuple[tuple[float, float], ...]:
    """Threshold -> clip rate, at thresholds evenly spaced on the log scale."""
    ordered = np.sort(norms)
    grid = np.geomspace(ordered[0] * 0.9, ordered[-1], points)
    grid[-1] = ordered[-1]
    rates = 1.0 - np.searchsorted(ordered, grid, side="right") / ordered.size
    return tuple((float(t), float(r)) for t, r in zip(grid, rates, strict=True))
