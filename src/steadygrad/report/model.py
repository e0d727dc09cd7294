"""The shape of a report: the JSON that the page, its twin and the terminal are laid out from.

Names are the keys of the JSON, which stay: a page that was written yesterday has them.
"""

from __future__ import annotations

from typing import TypedDict, final

Values = list["float | None"]
"""Floats; None where not finite."""


class VerdictData(TypedDict):
    """How a run went.

    Attributes:
        level: ``error``, ``warning``, ``ok`` or ``empty``.
        word: the level in a word or two.
        sentence: what happened.
    """

    level: str
    word: str
    sentence: str


class RecommendationLabels(TypedDict, total=False):
    """How a threshold that there is reads; missing where there is none.

    Attributes:
        optimizer: number of the optimizer that it is of.
        label: what stands before it.
        value: the threshold, for reading.
        typed: what to type.
    """

    optimizer: int
    label: str
    value: str
    typed: str


class Recommendation(RecommendationLabels):
    """The threshold to use.

    Attributes:
        threshold: the `max_norm`; None where there is none yet.
        spec: what to type after ``--clip``.
        needed: whether anything in the run called for clipping.
        reason: one sentence.
        more: further sentences.
    """

    threshold: float | None
    spec: str | None
    needed: bool | None
    reason: str
    more: list[str]


class KeyFigure(TypedDict):
    """One of the figures under the verdict, as text."""

    label: str
    value: str
    note: str


class OriginData(TypedDict):
    """Where a NaN arose, at the head of its finding's card.

    Attributes:
        place: the line of the script.
        source: its text.
        told: the lines of evidence that it takes the place of.
        facts: pairs of a word and what there is to say.
    """

    place: str
    source: str
    told: list[str]
    facts: list[list[str]]


class FindingData(TypedDict):
    """A `Finding` as JSON, and the origin that its evidence tells of."""

    id: str
    title: str
    severity: str
    confidence: float
    evidence: list[str]
    steps: list[int]
    tensors: list[str]
    causes: list[str]
    fixes: list[str]
    docs: str
    optimizer: int
    figures: dict[str, float | str]
    origin: OriginData | None


class OptimizerName(TypedDict):
    """What to call one optimizer of a run."""

    number: int
    name: str


class Trend(TypedDict):
    """The level of a series at some steps."""

    step: list[int]
    value: Values


class Mark(TypedDict):
    """Neighbouring steps that a line cannot show: ``nan``, ``inf`` or ``zero``."""

    kind: str
    first: int
    last: int
    count: int


class FigureCurve(TypedDict):
    """A figure over the steps, thinned to what can be drawn."""

    step: list[int]
    value: Values
    trend: Trend
    off_scale: list[Mark]


class NormCurve(FigureCurve):
    """The norm, and the threshold at the same steps.

    Attributes:
        threshold: the threshold in force.
        threshold_of_norm: whether it can be drawn against the total norm.
    """

    threshold: Values
    threshold_of_norm: bool


class Lane(TypedDict):
    """A stretch of steps of which some were clipped or skipped."""

    first: int
    last: int
    steps: int
    clipped: int
    skipped: int


class StretchData(TypedDict):
    """Steps from the first to the last, both included."""

    first: int
    last: int


class ActData(StretchData):
    """What recovery did with a stretch of steps."""

    act: str
    text: str


class Recovered(TypedDict):
    """What rollbacks took back, and what recovery did."""

    undone: list[StretchData]
    acts: list[ActData]


class Series(TypedDict):
    """One optimizer's curves; ``cosine`` is None where no direction was changed."""

    loss: FigureCurve
    norm: NormCurve
    cosine: FigureCurve | None
    lanes: list[Lane]
    recovery: Recovered


class NormHistogram(TypedDict):
    """How the norms are spread.

    Attributes:
        edges: of the bins, in log10 of the norm.
        counts: of the steps in each.
        rates: share of the steps that a threshold at each edge would clip.
        beyond: how many steps lie beyond the last bin and are counted in it.
    """

    edges: Values
    counts: list[int]
    rates: Values
    beyond: int


@final
class Refused(TypedDict):
    """An optimizer whose steps give no threshold, and why."""

    refused: str
    optimizer: int


@final
class Picture(TypedDict):
    """A `Calibration` as JSON holds it, as far as Python reads it, and how it is drawn."""

    threshold: float
    spec: str
    needed: bool
    steps: int
    advice: list[str]
    optimizer: int
    label: str
    value: str
    typed: str
    curve: list[Values]
    histogram: NormHistogram


class TensorData(TypedDict):
    """One row of the heat map."""

    name: str
    shape: list[int]
    module: str
    optimizer: int


class HeatMap(TypedDict):
    """Norms of tensors over the steps.

    Attributes:
        tensors: one a row.
        steps: first step of each column.
        last: last step of each column.
        log10: of the largest finite norm, ``[tensors][columns]``.
        broken: cells ``[tensor, column]`` with a NaN or inf.
        zero: cells that are zero throughout.
    """

    tensors: list[TensorData]
    steps: list[int]
    last: list[int]
    log10: list[Values]
    broken: list[list[int]]
    zero: list[list[int]]


class TimeMap(TypedDict):
    """The gradient at the time steps of a recurrent matrix, over the sampled steps.

    Attributes:
        name: of the matrix.
        length: time steps of its sequences.
        positions: the time steps that were measured, in the order in which the layer reads.
        steps: the sampled steps.
        log10: of the norm of dLoss/d(state), ``[positions][steps]``.
        zero: cells ``[position, step]`` that are zero.
    """

    name: str
    length: int
    positions: list[int]
    steps: list[int]
    log10: list[Values]
    zero: list[list[int]]


class RunData(TypedDict):
    """What a report says of one run.

    Attributes:
        name: what it is called.
        verdict: how it went.
        recommendation: the threshold to use.
        figures: those under the verdict.
        stability: as `Stability.to_dict`; None before the rules were applied.
        findings: the gravest first.
        optimizers: one an optimizer, as are ``series`` and ``thresholds``.
        series: curves.
        thresholds: calibrations.
        heatmap: None where there is none.
        through_time: one a recurrent matrix that was measured.
        info: what the run file says of the run.
    """

    name: str
    verdict: VerdictData
    recommendation: Recommendation
    figures: list[KeyFigure]
    stability: dict[str, float | int | None] | None
    findings: list[FindingData]
    optimizers: list[OptimizerName]
    series: list[Series]
    thresholds: list[Picture | Refused]
    heatmap: HeatMap | None
    through_time: list[TimeMap]
    info: dict[str, object]


class ComparedRow(TypedDict):
    """One optimizer of one run, beside the others."""

    name: str
    level: str
    cells: list[str]


class RunsCompared(TypedDict):
    """Several runs side by side."""

    sentence: str
    columns: list[str]
    rows: list[ComparedRow]


class ReportData(TypedDict):
    """A whole report.

    Attributes:
        format: version of this shape.
        steadygrad: version of the package that made it.
        title: what stands at the top.
        notes: sentences of the caller's.
        runs: one or several.
        comparison: None for one run.
    """

    format: int
    steadygrad: str
    title: str
    notes: list[str]
    runs: list[RunData]
    comparison: RunsCompared | None
