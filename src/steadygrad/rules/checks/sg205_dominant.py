"""SG205: one tensor that makes up the whole norm, or moves while all others stand still."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from steadygrad.robust import columns_median, median
from steadygrad.rules.advice import clip_code, code
from steadygrad.rules.base import Rule, finding
from steadygrad.rules.evidence.inputs import UNIT, input_size
from steadygrad.rules.evidence.loop import normalises
from steadygrad.rules.evidence.steps import Array
from steadygrad.rules.evidence.tensors import owner_names
from steadygrad.rules.evidence.view import View
from steadygrad.rules.evidence.wording import number, percent, times
from steadygrad.rules.finding import Finding

SHARE = 0.9
STEEP = 20.0
"""Factor by which a typical element of it exceeds those of the other tensors."""
TURNED = 0.9999
"""Cosine under which a clip changed the direction, which one by the total norm does not."""
AHEAD = 100.0
"""Factor by which its weights move faster, against their size, than the next fastest ones."""
FAR_AHEAD = 300.0
"""The same against the median."""


_CAUSES = (
    "a scale, temperature or loss weight far out of the range of the rest",
    "an output layer without normalisation before it, or targets far from unit size",
    "a term of the loss that has become the only one with a gradient",
)
_INPUTS = "inputs that are not normalised"


def check(view: View) -> Iterator[Finding]:
    owners = owner_names(view.tensors)
    if not view.enough or len(set(owners)) < 3 or not _hurts(view):
        return
    dominant = [*_by_share(view, owners), *_by_pace(view)]
    yield from dominant[:1]


def _by_share(view: View, owners: list[str]) -> Iterator[Finding]:
    table = view.healthy_norms
    squares = np.nan_to_num(table) ** 2
    total = squares.sum(axis=1)
    names = np.array(owners)
    rows = squares[total > 0] / total[total > 0][:, None]
    if not len(rows):
        return
    shares = {owner: float(np.median(rows[:, names == owner].sum(axis=1))) for owner in set(owners)}
    top = max(shares, key=lambda owner: shares[owner])
    inside = names == top
    steep = _steepness(view, table, inside)
    if shares[top] >= SHARE and steep >= STEEP:
        columns = np.flatnonzero(inside)
        largest = int(columns[np.argmax(np.median(rows[:, columns], axis=0))])
        if _harmed(view) or largest in view.weights:
            yield _finding(view, largest, shares[top], steep)


def _hurts(view: View) -> bool:
    """Whether a clip by the total norm acts, or the loss suffers: alone, a share is no fault."""
    return _harmed(view) or view.stuck


def _harmed(view: View) -> bool:
    """The same but for a loss that merely stalls.

    There a bias may carry the norm without any fault: the data has nothing else to teach.
    """
    turned = view.cosine < TURNED  # tensor by tensor, or by value: the others keep their own
    clipped = float(((view.coef < 1) & ~turned)[view.usable].mean())
    return clipped > 0.2 or view.loss_trend.diverged


def _serious(view: View) -> bool:
    """Whether the harm is more than a clip whose factor the optimizer divides out again."""
    return _harmed(view) and (not normalises(view) or view.stuck or view.loss_trend.diverged)


def _by_pace(view: View) -> Iterator[Finding]:
    """A tensor whose step is far too large for it while the same step is nothing to the rest."""
    _, ratios = view.sample("update_ratio")
    if len(view.weights) < 3 or not len(ratios):
        return
    paces = columns_median(ratios[:, view.weights])
    order = np.argsort(np.where(np.isfinite(paces), -paces, np.inf))
    fastest, second = paces[order[0]], paces[order[1]]
    usual = median(paces[order[1:]])
    if second > 0 and fastest > AHEAD * second and fastest > FAR_AHEAD * usual:
        yield _outpaced(view, int(view.weights[order[0]]), float(fastest), usual)


def _steepness(view: View, table: Array, inside: Array) -> float:
    sizes = np.array([max(1, int(np.prod(t.shape))) for t in view.tensors], dtype=np.float64)
    typical = columns_median(table) / np.sqrt(sizes)
    others = typical[~inside & (typical > 0)]
    return float(np.nanmax(typical[inside]) / np.median(others)) if others.size else 0.0


def _outpaced(view: View, top: int, fastest: float, usual: float) -> Finding:
    name = view.tensors[top].name
    return finding(
        view,
        "SG205",
        "warning",
        0.8,
        f"A step moves {name} {times(fastest / usual)} further, against its size, than the "
        "other matrices.",
        evidence=[
            f"Median update over weight: {number(fastest)} in {name}, {number(usual)} in the "
            "median of the others.",
            f"The loss goes from {number(view.loss_trend.start)} to {number(view.loss_trend.end)}: "
            "a rate that one tensor bears is too small for the rest.",
        ],
        steps=[int(view.step[0]), int(view.step[-1])],
        tensors=[name],
        causes=_causes(view, top),
        fixes=_fixes(view, top),
        figures={"pace": fastest / usual},
    )


def _finding(view: View, top: int, share: float, steep: float) -> Finding:
    name = view.tensors[top].name
    clipped = float((view.coef[view.usable] < 1).mean())
    return finding(
        view,
        "SG205",
        "warning" if _serious(view) else "info",
        0.8,
        f"{name}, with its module, is {percent(share)} of the squared gradient norm.",
        evidence=[
            f"Its typical element is {times(steep)} that of the other tensors.",
            f"The coefficient is under 1 on {percent(clipped)} of the steps: a clip by the total "
            f"norm {'shrinks' if clipped else 'would shrink'} every other tensor by its measure"
            + ("; this optimizer's steps hardly show it." if normalises(view) else "."),
            f"The median norm is {number(median(view.norm[view.usable]))}.",
        ],
        steps=[int(view.step[0]), int(view.step[-1])],
        tensors=[name],
        causes=_causes(view, top),
        fixes=_fixes(view, top),
        figures={"share": share, "steepness": steep},
    )


def _causes(view: View, top: int) -> tuple[str, ...]:
    return (_INPUTS, *_CAUSES) if _takes_large_inputs(view, top) else _CAUSES


def _takes_large_inputs(view: View, top: int) -> bool:
    """Whether the tensor is the first layer's, and its inputs are not known to be of unit size."""
    if not len(view.weights) or top != int(view.weights[0]):
        return False
    size = input_size(view)
    return not size <= UNIT


def _fixes(view: View, top: int) -> list[str]:
    apart = clip_code(view, "tensor-norm:1.0") + "  # each tensor by itself"
    if not _takes_large_inputs(view, top):
        return [apart]
    normalise = code(
        view,
        torch="x = (x - x.mean(0)) / (x.std(0) + 1e-6)  # normalise what enters it",
        keras="keras.layers.Normalization()  # before the first layer",
        jax="x = (x - x.mean(0)) / (x.std(0) + 1e-6)",
    )
    return [normalise, apart]


RULE = Rule("SG205", "one tensor that dominates the norm", check, supersedes=("SG401",))
