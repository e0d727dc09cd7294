"""What a calibration says: frozen plain data, for findings, the report and JSON alike."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from steadygrad.notebook.cards import Card, Histogram

BINS = 30


@dataclass(frozen=True)
class Spike:
    """One step whose norm stood far over its neighbours.

    Attributes:
        step: the step's number.
        norm: total norm before clipping.
        factor: norm over the local median.
    """

    step: int
    norm: float
    factor: float


@dataclass(frozen=True)
class Outcome:
    """What one fixed threshold would have done to the recorded norms.

    Attributes:
        max_norm: the threshold.
        clip_rate: share of steps with a norm over it, 0 to 1.
        coef: median coefficient of the steps it clips; 1 where it clips none.
        verdict: ``never acts``, ``clips the spikes``, ``clips often`` or ``clips nearly always``.
    """

    max_norm: float
    clip_rate: float
    coef: float
    verdict: str


@dataclass(frozen=True)
class Calibration:
    """A threshold and its evidence.

    Attributes:
        threshold: the `max_norm` to use; over the stable median, under the spikes.
        median: of the norms in the stable stretch.
        peak: largest finite norm of the run.
        clip_rate: share of the steps that ``threshold`` would have clipped, 0 to 1.
        interval: 95 % bootstrap interval of ``threshold``, low and high.
        stationary: whether the norm keeps its level through the run.
        advice: sentences, the most important first.
        spec: what to type after ``--clip``.
        needed: whether anything in the run called for clipping.
        trend: ``flat``, ``falling`` or ``rising``.
        drift: typical norm at the end over that at the start, along the fitted trend.
        percentiles: percentile (``"1"`` to ``"99.9"``) -> norm, over the stable stretch.
        spikes: the outlying steps, in order.
        curve: ``(threshold, clip_rate)`` pairs, thresholds rising, from below the smallest
            norm to the peak.
        defaults: how 0.5, 1.0 and 5.0 would have done.
        sigma: robust spread of the log norms above their median.
        steps: number of steps the figures rest on.
        first_step: number of the first of them.
        last_step: number of the last of them.
        nonfinite: number of steps left out because their norm was NaN or inf.
        diverged_at: step from which the norms left their range for good, or None.
        norm_type: the p of the norms.
        optimizer: number of the optimizer that the steps belong to.
    """

    threshold: float
    median: float
    peak: float
    clip_rate: float
    interval: tuple[float, float]
    stationary: bool
    advice: tuple[str, ...]
    spec: str
    needed: bool
    trend: str
    drift: float
    percentiles: dict[str, float]
    spikes: tuple[Spike, ...]
    curve: tuple[tuple[float, float], ...]
    defaults: tuple[Outcome, ...]
    sigma: float
    steps: int
    first_step: int
    last_step: int
    nonfinite: int
    diverged_at: int | None
    norm_type: float
    optimizer: int

    def _repr_html_(self) -> str:
        return self.card.as_html()

    @property
    def card(self) -> Card:
        """The calibration as a notebook shows it: threshold, figures, how often each acts."""
        low, high = self.interval
        figures = (
            ("median", f"{self.median:.3g}"),
            ("peak", f"{self.peak:.3g}"),
            ("would clip", f"{self.clip_rate:.1%}"),
            ("interval", f"{low:.3g} to {high:.3g}"),
            ("steps", f"{self.steps}"),
        )
        level = "ok" if self.stationary else "warning"
        title = f"Threshold {self.threshold:.3g} ({self.spec})"
        return Card(
            title,
            level,
            figures,
            threshold=self.threshold,
            sentences=self.advice,
            histogram=self.histogram,
        )

    @property
    def histogram(self) -> Histogram:
        """How often norms of each size came, up to the peak or the threshold."""
        thresholds, rates = np.array(self.curve).T
        edges = np.geomspace(thresholds[0], 1.05 * max(self.peak, self.threshold), BINS + 1)
        places = np.searchsorted(thresholds, edges * (1 + 1e-12), side="right") - 1
        over = np.where(edges > thresholds[-1], 0.0, rates[np.maximum(places, 0)])
        shares = tuple(float(share) for share in -np.diff(over))
        return Histogram(float(edges[0]), float(edges[-1]), shares)

    def to_dict(self) -> dict[str, object]:
        """The same as JSON holds it: numbers, strings, lists; an infinite p is ``"inf"``."""
        plain = dataclasses.asdict(self)
        plain["norm_type"] = "inf" if self.norm_type == float("inf") else self.norm_type
        for key in ("interval", "advice", "spikes", "curve", "defaults"):
            plain[key] = list(plain[key])
        return plain
