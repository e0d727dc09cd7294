"""SG301: gradients that shrink layer by layer on their way back, while the loss stalls."""

from __future__ import annotations

import math
from collections.abc import Iterator

from steadygrad.robust import median
from steadygrad.rules.advice import code, jax_weights
from steadygrad.rules.base import Rule, finding
from steadygrad.rules.evidence.depth import Profile, biases, profiles, wrecked
from steadygrad.rules.evidence.loop import optimizer_class
from steadygrad.rules.evidence.losses import LossTrend
from steadygrad.rules.evidence.view import View
from steadygrad.rules.evidence.wording import number, percent, times
from steadygrad.rules.finding import Finding

SHRUNK = 300.0
LOST = 2.0**23
"""Beyond the digits of float32: what the first layers get is rounding beside the last ones'."""

DEEP = 4
"""Matrices from which depth may have taken a gradient that is missing everywhere."""

_CAUSES = (
    "saturating activations (sigmoid, tanh) in a deep stack: each layer multiplies the gradient "
    "by at most 1/4 (sigmoid) or 1 (tanh)",
    "initial weights too small for the depth",
    "no residual connections and no normalisation",
)

_CLAMPED = (
    "weights held small by hand, as a Wasserstein critic's are: each layer shrinks what passes it, "
    "both ways"
)


def check(view: View) -> Iterator[Finding]:
    profile = _steepest(view) if view.enough and not wrecked(view) else None
    if profile is not None and profile.ratio >= _least(view) and profile.agreement >= 0.5:
        yield _finding(view, profile)
    elif view.enough and view.faint and _tells(view) and len(view.weights) >= DEEP:
        yield _under_epsilon(view)


def _tells(view: View) -> bool:
    """Whether faint gradients are no success: of two that play against each other no loss says."""
    return view.stuck or (view.several and view.ever_faint)


def _least(view: View) -> float:
    """How much smaller is too much: a loss that still falls says that small is enough."""
    trend = view.loss_trend
    if view.stuck:
        return SHRUNK
    flat = trend.plateau and not trend.stalled
    if flat or trend.signed or not trend.recorded:
        return 30 * SHRUNK
    return LOST if _learns(trend) else math.inf


def _learns(trend: LossTrend) -> bool:
    return trend.recorded and not (trend.signed or trend.plateau or trend.stalled)


def _steepest(view: View) -> Profile | None:
    table = view.live_norms
    depth_profiles = [
        p for columns in (view.weights, biases(view)) for p in profiles(view, table, columns)
    ]
    return max(depth_profiles, key=lambda p: p.ratio * (p.agreement >= 0.5), default=None)


def _fixes(view: View) -> list[str]:
    return [
        code(
            view,
            torch="x = x + block(x)                          # residual connections\n"
            "layer = nn.Sequential(nn.Linear(n, n), nn.LayerNorm(n), nn.ReLU())\n"
            'nn.init.kaiming_normal_(layer[0].weight, nonlinearity="relu")',
            keras="x = keras.layers.Add()([x, block(x)])\n"
            'keras.layers.Dense(n, activation="relu", kernel_initializer="he_normal")\n'
            "keras.layers.LayerNormalization()",
            jax="x = x + block(x)  # residual connections\n"
            "x = jax.nn.relu(jax.nn.standardize(x))  # in each block; not sigmoid or tanh\n"
            + jax_weights(view, "he_normal"),
        ),
        "# Clipping does nothing here: it can only make a gradient smaller.",
    ]


def _loss(trend: LossTrend) -> str:
    way = (
        f"{number(trend.start)} at first, {number(trend.middle)} half-way, "
        f"{number(trend.end)} at the end"
    )
    if trend.signed:
        return f"The loss takes either sign, so that it cannot show whether training stalls: {way}."
    verb = "falls, as far as the last layers can take it" if _learns(trend) else "stalls"
    return f"The loss {verb}: {way} ({percent(max(trend.fall, 0.0))} less at its lowest)."


def _finding(view: View, profile: Profile) -> Finding:
    trend = view.loss_trend
    comparable = trend.recorded and not trend.signed
    learns = _learns(trend)
    first, last = (view.tensors[profile.columns[i]].name for i in (0, -1))
    evidence = [
        f"Median gradient norm: {number(profile.norms[0])} in {first}, "
        f"{number(profile.norms[-1])} in {last}; the first third of the layers has "
        f"{times(profile.ratio)} less than the last third.",
        f"Each layer passes on about {number(profile.per_layer)} of the gradient; "
        f"{len(profile.norms)} layers.",
    ]
    if trend.recorded:
        evidence.append(_loss(trend))
    return finding(
        view,
        "SG301",
        "info" if learns else "error" if comparable and profile.ratio >= 1e4 else "warning",
        min(0.95, (0.85 if comparable else 0.55) + 0.1 * profile.agreement * (profile.ratio > 1e4)),
        f"Gradients vanish through depth: {times(profile.ratio)} smaller in the first "
        f"layers than in the last{', which learn alone' if learns else ''}.",
        evidence=evidence,
        steps=[int(view.step[0]), int(view.step[-1])],
        tensors=[view.tensors[i].name for i in profile.columns[:4]],
        causes=_CAUSES,
        fixes=_fixes(view),
        figures={"ratio": profile.ratio, "per_layer": profile.per_layer},
    )


def _under_epsilon(view: View) -> Finding:
    """A deep stack whose output is the same for every input: all gradients are rounding."""
    norm = median(view.norm[view.usable])
    return finding(
        view,
        "SG301",
        "error",
        0.85,
        f"No gradient arrives: a norm of {number(norm)} over all tensors is under the epsilon of "
        f"{optimizer_class(view) or 'the optimizer'}.",
        evidence=[
            f"Median gradient norm: {number(norm)}; elements of that size are outweighed by the "
            "epsilon that the update is divided by, and no weight moves.",
            f"{len(view.weights)} matrices lie behind each other at most; where each flattens its "
            "inputs, the outputs no longer depend on them.",
            _loss(view.loss_trend),
        ],
        steps=[int(view.step[0]), int(view.step[-1])],
        tensors=[view.tensors[i].name for i in view.weights[:4]],
        causes=(_CLAMPED, *_CAUSES) if view.several else _CAUSES,
        fixes=[*([_unclamped(view)] if view.several else []), *_fixes(view)],
        figures={"norm": norm},
    )


def _unclamped(view: View) -> str:
    """Code that bounds a critic's slope without making its weights small."""
    return code(
        view,
        torch="for layer in critic.modules():  # and clamp no weights\n"
        "    if isinstance(layer, (nn.Linear, nn.Conv2d)):\n"
        "        nn.utils.parametrizations.spectral_norm(layer)",
        keras="layer = keras.layers.SpectralNormalization(layer)  # and clamp no weights",
        jax="w = w / jnp.linalg.norm(w, 2)  # each matrix, where it is used; and clamp no weights",
    )


RULE = Rule("SG301", "gradients that vanish through depth", check, supersedes=("SG205",))
