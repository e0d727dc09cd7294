"""SG201: norms that grow and do not come back."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from steadygrad.robust import blocks, median, order_agreement, running_median
from steadygrad.rules.advice import code, hold_norm, lower_lr
from steadygrad.rules.base import Rule, finding
from steadygrad.rules.evidence.loop import normalises
from steadygrad.rules.evidence.view import View
from steadygrad.rules.evidence.wording import number, times
from steadygrad.rules.finding import Finding

if TYPE_CHECKING:
    from steadygrad.runlog import Run

GROWN = 10.0
SWOLLEN, STEADY = 3.0, 1.5
"""Growth of the weights from which they explain that of gradients, and up to which they do not."""
RUN_OFF, CLIMBING = 10.0, 0.9
"""Growth of an error, and how steady that of the norms, that tell targets which run off."""
BEFORE = 8
"""Steps before the first spike that show the level it came from."""

_CAUSES = (
    "the learning rate is too high for this loss surface, or rises in a schedule",
    "weights grow without bound: an unbounded critic or target, no weight decay, no normalisation",
    "a wrong sign: a score that should rise, or updates subtracted that are negated already",
    "a loss that feeds on its own output (bootstrapped targets, a one-sided adversary)",
)

_SIGN = "# no critic: is the sign right? what should fall is trained by loss, and not by -loss"


def check(view: View) -> Iterator[Finding]:
    if int(view.usable.sum()) < 12 or _anothers(view):
        return
    norms = blocks(view.norm[view.usable])
    window = max(3, len(norms) // 12)
    smooth = running_median(norms, window)[window - 1 :]
    tenth = max(1, len(smooth) // 10)
    start, end = median(smooth[:tenth]), median(smooth[-tenth:])
    steady = order_agreement(smooth)
    if end / max(start, 1e-300) >= _least(view) and steady >= 0.4:
        if not _thrown(view, start):
            yield _finding(view, steady, (start, end), "in the first tenth")
    elif end / max(start, 1e-300) >= GROWN and _unbounded(view):
        yield _finding(view, steady, (start, end), "in the first tenth")
    elif view.loss_trend.blew_up and not _thrown(view, start):
        first, floor = median(norms[:3]), float(smooth[len(smooth) // 2 :].min())
        if floor > GROWN * first:
            yield _finding(view, steady, (first, end), "in the first three steps")


def _weights_grown(view: View) -> float:
    """Factor by which the matrices' norms have grown, the median; 1 where it is not known."""
    _, norms = view.sample("weight_norm")
    if len(norms) < 2 or not len(view.weights):
        return 1.0
    grown = median(norms[-1, view.weights] / np.maximum(norms[0, view.weights], 1e-300))
    return grown if np.isfinite(grown) else 1.0


def _unbounded(view: View) -> bool:
    """Whether a score that has no floor falls on and on, and the weights grow with it.

    Where nobody has seen the weights, norms that climb all the way tell it.
    """
    trend = view.loss_trend
    if not (trend.signed and trend.end < -30 * max(abs(trend.first), 1.0)):
        return False
    if len(view.sample("weight_norm")[0]) < 2:
        return order_agreement(blocks(view.norm[view.usable])) >= CLIMBING
    return _weights_grown(view) >= SWOLLEN


def _adversary(view: View) -> bool:
    """Whether it is a score that grows: one of several networks, its loss of either sign."""
    swollen = view.loss_trend.signed and view.several and _weights_grown(view) >= SWOLLEN
    return swollen or _unbounded(view)


def _anothers(view: View) -> bool:
    """Whether these weights stay as they are while those of another optimizer grow."""
    if not view.several or _weights_grown(view) >= STEADY:
        return False
    growths = _growths(view.run)
    return any(growths[other] >= SWOLLEN for other in growths.keys() - {view.optimizer})


def _growths(run: Run) -> dict[int, float]:
    """`_weights_grown` of each optimizer: every one of them is compared with the others."""
    of_all = _OF_RUN.get(run)
    if of_all is None:
        of_all = {number: _weights_grown(View(run, number)) for number in run.parts}
        _OF_RUN[run] = of_all
    return of_all


_OF_RUN: weakref.WeakKeyDictionary[Run, dict[int, float]] = weakref.WeakKeyDictionary()


def _thrown(view: View, start: float) -> bool:
    """Whether norms kept their level until a spike, and have been above it since."""
    places = view.spikes
    if not len(places) or places[0] < BEFORE:
        return False
    norms = view.norm[view.usable]
    return median(norms[places[0] - BEFORE : places[0]]) < SWOLLEN * start


def _least(view: View) -> float:
    """Growth from which to speak: norms that rise while the loss falls are ordinary.

    An adversary's loss may rise a few times over in a sound run, and its norms with it.
    """
    trend = view.loss_trend
    if not trend.recorded:
        return 3 * GROWN
    if trend.diverged and trend.end > 5 * abs(trend.first):
        return GROWN
    learning = not trend.diverged and trend.fall >= 0.15 and trend.end < trend.start
    return 100 * GROWN if learning else 30 * GROWN


def _finding(view: View, steady: float, ends: tuple[float, float], since: str) -> Finding:
    trend = view.loss_trend
    grown = ends[1] / max(ends[0], 1e-300)
    numbers = view.step[view.usable]
    half = max(3, len(numbers) // 3)
    evidence = [
        f"The median gradient norm rises from {number(ends[0])} {since} to "
        f"{number(ends[1])} at the end (step {numbers[-1]}).",
        f"It rises in {50 * (1 + steady):.0f} % of all pairs of (smoothed) steps.",
    ]
    if trend.recorded:
        evidence.append(
            f"The loss goes from {number(trend.start)} to {number(trend.end)}; "
            f"it was at {number(trend.highest)}."
        )
    return finding(
        view,
        "SG201",
        _severity(view),
        min(0.95, 0.6 + 0.15 * float(np.log10(grown)) * max(steady, 0.0)),
        f"Gradient norms grow and do not come back: {times(grown)} in this run.",
        evidence=evidence,
        steps=[int(numbers[half]), int(numbers[-1])],
        tensors=_growers(view),
        causes=(_CAUSES[1], _CAUSES[2], _CAUSES[0])
        if _adversary(view)
        else _CAUSES[::-1]
        if _feeds_itself(view, steady)
        else _CAUSES,
        fixes=[
            *([_bounded(view)] if _adversary(view) else []),
            *([_still_targets(view)] if _feeds_itself(view, steady) else []),
            lower_lr(view),
            *hold_norm(view, until=half),
        ],
        figures={"growth": grown, "rising": steady},
    )


def _feeds_itself(view: View, steady: float) -> bool:
    """Whether an error grows on and on although the steps are of one length: its targets run off.

    A rate that is too high makes such an optimizer jump about, not climb.
    """
    trend = view.loss_trend
    ran_off = trend.blew_up and not trend.signed and trend.end > RUN_OFF * abs(trend.first)
    return ran_off and steady >= CLIMBING and normalises(view)


def _still_targets(view: View) -> str:
    """Code for targets that do not move with every step; a discount under 1 bounds them."""
    return code(
        view,
        torch="target_net = copy.deepcopy(net)"
        "  # and every 200 steps: target_net.load_state_dict(net.state_dict())\n"
        "with torch.no_grad():\n"
        "    target = reward + 0.99 * target_net(next_state).max(1).values  # a discount below 1\n"
        "# no such targets: is the sign right? what should rise is trained by loss = -score",
        keras="target_net = keras.models.clone_model(net)"
        "  # and every 200 steps: target_net.set_weights(net.get_weights())\n"
        "target = reward + 0.99 * keras.ops.max(target_net(next_state), 1)  # a discount below 1\n"
        "# no such targets: is the sign right? what should rise is trained by loss = -score",
        jax="value = net.apply(target_params, next_state).max(1)"
        "  # every 200 steps: target_params = params\n"
        "target = reward + 0.99 * jax.lax.stop_gradient(value)  # a discount below 1\n"
        "# no such targets: is the sign right? optax's updates are negated already, and added:\n"
        "params = optax.apply_updates(params, updates)",
    )


def _bounded(view: View) -> str:
    """Code that bounds a score: no learning rate and no clip does, they only slow it down."""
    return code(
        view,
        torch="for layer in critic.modules():  # the model whose score grows\n"
        "    if isinstance(layer, (nn.Linear, nn.Conv2d)):\n"
        "        nn.utils.parametrizations.spectral_norm(layer)\n"
        f"# or a gradient penalty on its inputs\n{_SIGN}",
        keras=f"layer = keras.layers.SpectralNormalization(layer)  # each of the critic\n{_SIGN}",
        jax="# of a critic; Flax: nn.SpectralNorm(layer)(x, update_stats=True), or by hand\n"
        "w = w / jnp.linalg.norm(w, 2)  # each matrix, where it is used\n" + _SIGN,
    )


def _severity(view: View) -> str:
    """How grave the growth is: from a tiny start, while the loss keeps its range, it is none."""
    trend = view.loss_trend
    if not trend.recorded:
        return "warning"
    if _unbounded(view):
        return "error"
    thrown = trend.diverged and trend.end > 2 * abs(trend.first)
    return "error" if thrown or trend.blew_up else "info"


def _growers(view: View) -> list[str]:
    table = view.healthy_norms
    if table.shape[0] < 6 or not table.shape[1]:
        return []
    cut = table.shape[0] // 3
    early, late = (np.nanmax(part, axis=0, initial=0.0) for part in (table[:cut], table[-cut:]))
    growth = late / np.maximum(early, 1e-300)
    return [view.tensors[i].name for i in np.argsort(growth)[::-1][:3]]


RULE = Rule("SG201", "sustained growth of gradients", check, supersedes=("SG202",))
