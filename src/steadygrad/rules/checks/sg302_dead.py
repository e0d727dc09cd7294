"""SG302: tensors or units whose gradient is exactly zero, step after step."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from steadygrad.robust import columns_median
from steadygrad.rules.advice import code, jax_weights, lower_lr
from steadygrad.rules.base import Rule, finding
from steadygrad.rules.evidence.dead import never_lived
from steadygrad.rules.evidence.depth import biases, profiles
from steadygrad.rules.evidence.steps import Array
from steadygrad.rules.evidence.view import View
from steadygrad.rules.evidence.wording import percent
from steadygrad.rules.finding import Finding

DEAD = 0.7
"""Share of a layer's units from which it counts as dead."""
ALL_BUT = 0.9
"""The same for a layer that began no better."""
RISEN = 0.2
"""Growth of that share from which the run itself has killed the units."""
BLOCKED = 300.0
"""Factor by which the layers in front of dead ones get less gradient than those behind."""
ENOUGH_LATE = 8

_AT_ONCE = (
    "the last activation is flat where the outputs lie: a ReLU whose inputs are all negative, a "
    "softmax over one unit, a clamp",
    "normalisation over one value, as of a batch of one, which makes every input 0",
    "a detach, a mask or a comparison that cuts the graph",
)
_ASLEEP = (
    "units that no input wakes: biases or weights that are far below zero from the start",
    "a detach, a mask or a comparison that cuts the graph behind them",
)
_CUT = (
    "nn.Dropout(1.0), which drops all, or a mask of zeros",
    "sign, round, argmax or a comparison on the way: their slope is 0",
    "a stop_gradient or detach whose result is multiplied by 0",
)
_CAUSES = (
    "ReLU units pushed below zero for every input: a learning rate too high, a large negative bias",
    "inputs or weights so large that every unit saturates to exactly 0",
    "a mask, a max or a detach that cuts the graph",
    "targets that the inputs do not tell: what is learned is a constant, and units die on the way",
)


def check(view: View) -> Iterator[Finding]:
    if not view.enough or not len(view.order) or view.lost:
        return
    zeros = columns_median(view.zeros[view.good][-max(ENOUGH_LATE, int(view.good.sum()) // 2) :])
    whole = np.flatnonzero((zeros == 1) & _mattering(view))
    if np.isin(whole, view.weights).any():
        if _matters(view, whole) or never_lived(view):
            yield _whole(view, whole)
    elif not view.loss_trend.diverged and not view.faint:  # zeros among rounding are chance
        partly = _dead_biases(view, zeros)
        units = _dead_units(view) if view.stuck else _dying(view)
        if units.size or (view.stuck and partly.size):
            yield _partly(view, partly, zeros, units)


def _dead_biases(view: View, zeros: Array) -> Array:
    early = columns_median(view.zeros[view.good][:3])
    columns = [i for i in biases(view) if zeros[i] < 1 and _is_dead(zeros[i], early[i])]
    return np.array(columns, dtype=np.int64)


def _dead_units(view: View) -> Array:
    steps, dead = view.sample("activation_zero")
    if not len(steps):
        return np.zeros(0, np.int64)
    late = columns_median(dead[-3:])
    return np.array([i for i in range(len(late)) if _is_dead(late[i], dead[0, i])], dtype=np.int64)


def _is_dead(late: float, early: float) -> bool:
    """Whether a layer died in this run, or hardly lived: a narrow layer may start half asleep."""
    return bool(late >= ALL_BUT or (late >= DEAD and late - early >= RISEN))


def _matters(view: View, whole: Array) -> bool:
    """A loss that still falls, or that is next to nothing, explains a zero gradient."""
    trend = view.loss_trend
    if not trend.recorded:
        return True
    solved = abs(trend.end) <= 1e-3 * abs(trend.start)
    most = np.isin(view.weights, whole).mean() >= 0.5
    return bool(trend.stalled or trend.diverged or trend.plateau or most) and not solved


def _severity(view: View) -> str:
    """A loss that is 0 from the first step on may be solved, or masked away.

    Weights that move all the same carry the momentum of earlier steps, which had gradients.
    """
    if never_lived(view):
        nothing = not (view.loss[view.usable] != 0).any()
        return "info" if nothing and view.travel > 0 else "error"
    return "error" if view.loss_trend.recorded else "warning"


def _mattering(view: View) -> Array:
    """Matrices, and vectors that are biases: an embedding's rows are mostly zero by design."""
    weight = np.zeros(len(view.tensors), dtype=bool)
    weight[view.weights] = True
    weight[biases(view)] = True
    return weight


def _dying(view: View) -> Array:
    """Layers that died in this run, and the loss went flat with them.

    Most layers are dead, or those that are let next to nothing of the gradient through.
    """
    steps, dead = view.sample("activation_zero")
    if not len(steps) or not view.loss_trend.plateau:
        return np.zeros(0, np.int64)
    late = columns_median(dead[-3:])
    units = np.flatnonzero(late >= DEAD)
    most = 2 * units.size >= np.isfinite(dead[0]).sum()
    risen = units.size and np.nanmax((late - dead[0])[units], initial=-1.0) >= RISEN
    return units if risen and (most or _blocks(view)) else units[:0]


def _blocks(view: View) -> bool:
    """Whether the first layers get next to nothing of the gradient of the last."""
    depth_profiles = profiles(view, view.live_norms, biases(view))
    return any(p.ratio >= BLOCKED and p.agreement >= 0.5 for p in depth_profiles)


def _whole(view: View, columns: Array) -> Finding:
    every = len(columns) == int(_mattering(view).sum())
    at_once = bool((columns_median(view.zeros[view.good][:3])[columns] == 1).all())
    asleep = at_once and not every and not _normalised(view)
    cut = asleep and _alive(view)
    names = [view.tensors[i].name for i in columns]
    with_loss = view.loss_trend.recorded
    return finding(
        view,
        "SG302",
        _severity(view),
        0.93 if with_loss else 0.7,
        ("Every gradient is exactly zero" if every else f"{len(names)} tensors get only zeros")
        + (
            " from the first step on: what is behind them gets a gradient, and lets none through."
            if asleep
            else " from the first step on: the model is built so that none gets through."
            if at_once
            else " in the second half of the run: dead units, or a graph that is cut."
        ),
        evidence=[
            f"In {'every step' if at_once else 'the second half of the run'} every element of "
            f"{', '.join(names[:4])} is exactly 0.",
            view.loss_sentence,
        ],
        steps=[int(view.step[-1])],
        tensors=names[:8],
        causes=_CUT if cut else _ASLEEP if asleep else _AT_ONCE if at_once else _CAUSES,
        fixes=_let_through(view, cut, _fed_zeros(view, columns))
        if asleep
        else _look_at_output(view)
        if at_once
        else _fixes(view),
        figures={"tensors": len(names)},
    )


def _partly(view: View, columns: Array, zeros: Array, units: Array) -> Finding:
    names = [view.tensors[i].name for i in (columns if columns.size else units)]
    shares = (
        zeros[columns]
        if columns.size
        else columns_median(view.sample("activation_zero")[1][-3:])[units]
    )
    return finding(
        view,
        "SG302",
        "warning",
        0.85,
        f"{percent(float(np.max(shares)))} of the units behind {names[0]} are dead while the loss "
        f"{'stalls' if view.loss_trend.stalled else 'falls no more'}.",
        evidence=[
            f"Share of units that are zero for the whole batch: {percent(float(np.min(shares)))} "
            f"to {percent(float(np.max(shares)))} in {len(names)} layers.",
            view.loss_sentence,
        ],
        steps=[int(view.step[-1])],
        tensors=names[:8],
        causes=_CAUSES,
        fixes=_fixes(view),
        figures={"share": float(np.max(shares))},
    )


def _look_at_output(view: View) -> list[str]:
    """The fix for a layer that never had a gradient: look at what is behind it, not at the rate."""
    return [
        code(
            view,
            torch="nn.Softplus()  # or nothing, in place of a ReLU after the last layer\n"
            "# a softmax over one unit is always 1: nn.Sigmoid(), or two units\n"
            "# normalisation over one value gives 0 (batch norm, a batch of one): larger batches\n"
            "# targets outside of what the last activation can give: rescale them",
            keras='keras.layers.Dense(1, activation="softplus")  # the last one; not "relu"\n'
            '# a softmax over one unit is always 1: activation="sigmoid"\n'
            "# normalisation over one value gives 0 (batch norm, a batch of one)",
            jax="y = jax.nn.softplus(y)  # the last activation, or none; not relu",
        )
    ]


def _normalised(view: View) -> bool:
    """Over one value normalisation gives 0, and biases behind it get a gradient all the same."""
    return any("norm" in tensor.module.lower() for tensor in view.tensors)


def _fixes(view: View) -> list[str]:
    return [lower_lr(view), _awake(view)]


def _alive(view: View) -> bool:
    """Whether units were seen at the start, and none of the layers slept of its own accord."""
    _, dead = view.sample("activation_zero")
    if not len(dead) or not np.isfinite(dead[0]).any():
        return False
    return all(_zeroed_behind(view, int(column)) for column in np.flatnonzero(dead[0] >= DEAD))


def _zeroed_behind(view: View, column: int) -> bool:
    """Whether what a layer gives is spread around 0, so that zeros are made of it behind it."""
    _, spreads = view.sample("activation_std")
    _, sizes = view.sample("weight_norm")
    layer = view.tensors[column].name.rpartition(".")[0]
    bias = [i for i in biases(view) if view.tensors[i].name.rpartition(".")[0] == layer]
    if not len(spreads) or not len(sizes) or not bias:
        return False
    offset = sizes[0, bias[0]] / np.sqrt(np.prod(view.tensors[bias[0]].shape))
    return bool(offset < spreads[0, column])


def _fed_zeros(view: View, columns: Array) -> bool:
    """Whether a matrix gets only zeros and its own bias does not: then its inputs are all 0.

    Units in front of it give nothing. What cuts a graph, or has no slope, hands on numbers.
    """
    awake = {_layer(view, i) for i in biases(view) if i not in columns}
    return any(_layer(view, i) in awake for i in columns if i in view.weights)


def _layer(view: View, column: int) -> str:
    return re.sub(r"[./][^./]*$", "", view.tensors[column].name)


def _let_through(view: View, cut: bool, fed_zeros: bool) -> list[str]:
    """Of units that are awake, what stands behind them; where nobody saw them, that as well."""
    through = code(
        view,
        torch="nn.Dropout(0.1)  # p is the share that is dropped: 1.0 drops all\n"
        "b = w + (torch.sign(w) - w).detach()  # sign, round, argmax: straight through\n"
        "assert mask.any()  # a mask that is 0 everywhere lets nothing through",
        keras="# look for stop_gradient, round, sign, argmax or a mask of zeros behind them\n"
        "b = w + keras.ops.stop_gradient(keras.ops.sign(w) - w)  # straight through",
        jax="# look for jax.lax.stop_gradient, jnp.round, jnp.sign, argmax or a mask of zeros\n"
        "b = w + jax.lax.stop_gradient(jnp.sign(w) - w)  # straight through",
    )
    unseen = not len(view.sample("activation_zero")[1]) and not fed_zeros
    return [through] if cut else [through, _awake(view)] if unseen else [_awake(view), through]


def _awake(view: View) -> str:
    """Units that are never exactly flat, and weights that they are made for."""
    return code(
        view,
        torch="act = nn.LeakyReLU(0.01)  # or nn.GELU(): never exactly flat\n"
        'nn.init.kaiming_normal_(layer.weight, nonlinearity="leaky_relu")\n'
        "nn.init.zeros_(layer.bias)",
        keras='keras.layers.Dense(n, activation="gelu", kernel_initializer="he_normal")',
        jax="x = jax.nn.gelu(x)  # in place of relu: never exactly flat; biases that begin at 0\n"
        + jax_weights(view, "he_normal"),
    )


RULE = Rule("SG302", "dead units and all-zero gradients", check, supersedes=("SG301", "SG205"))
