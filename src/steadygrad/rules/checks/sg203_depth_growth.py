"""SG203: gradients that grow layer by layer on their way back."""

from __future__ import annotations

from collections.abc import Iterator

from steadygrad.rules.advice import code, hold_norm, jax_weights
from steadygrad.rules.base import Rule, finding
from steadygrad.rules.evidence.depth import Profile, biases, profiles
from steadygrad.rules.evidence.view import View
from steadygrad.rules.evidence.wording import number, times
from steadygrad.rules.finding import Finding

GROWN = 100.0
CERTAIN = 1e4
VAST = 1e3
"""A first loss that outputs of ordinary size do not make, where training sheds it later on."""

_CAUSES = (
    "initial weights too large for the depth: each layer multiplies the gradient",
    "no normalisation and no residual scaling in a deep stack",
)


def check(view: View) -> Iterator[Finding]:
    profile = _steepest(view)
    if profile is None or profile.agreement > -0.6 or profile.ratio > 1 / GROWN:
        return
    if profile.ratio <= 1 / CERTAIN or _hurts(view):
        yield _finding(view, profile)


def _steepest(view: View) -> Profile | None:
    """The steepest growth in the first usable steps: later ones show what training made of it."""
    table = view.healthy_norms[: max(3, len(view.healthy_norms) // 10)]
    depth_profiles = [
        p for columns in (view.weights, biases(view)) for p in profiles(view, table, columns)
    ]
    return min(depth_profiles, key=lambda p: p.ratio, default=None)


def _hurts(view: View) -> bool:
    trend = view.loss_trend
    vast = trend.recorded and trend.first > VAST and trend.first > 30 * abs(trend.lowest)
    trouble = not trend.recorded or view.stuck or trend.diverged or trend.dear or vast
    return trouble or bool(view.broken.any()) or len(view.spikes) > 0


def _finding(view: View, profile: Profile) -> Finding:
    grown = 1 / profile.ratio
    first, last = (view.tensors[profile.columns[i]].name for i in (0, -1))
    return finding(
        view,
        "SG203",
        "error" if _hurts(view) and grown >= CERTAIN else "warning",
        0.88,
        f"Gradients explode through depth: {times(grown)} larger in the first layers than "
        "in the last.",
        evidence=[
            f"Median gradient norm of the first steps: {number(profile.norms[0])} in {first}, "
            f"{number(profile.norms[-1])} in {last}.",
            f"Each layer multiplies the gradient by about {number(profile.per_layer)}; "
            f"{len(profile.norms)} layers.",
        ],
        steps=[int(view.step[0])],
        tensors=[view.tensors[i].name for i in profile.columns[:4]],
        causes=_CAUSES,
        fixes=[
            code(
                view,
                torch='nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")\n'
                "layer = nn.Sequential(layer, nn.LayerNorm(n))  # or residual connections",
                keras='keras.layers.Dense(n, kernel_initializer="he_normal")\n'
                "keras.layers.LayerNormalization()",
                jax=jax_weights(view, "he_normal")
                + "\nx = jax.nn.standardize(x)  # between layers, or residual connections",
            ),
            *hold_norm(view, note="holds it, does not heal it"),
        ],
        figures={"ratio": grown, "per_layer": profile.per_layer},
    )


RULE = Rule(
    "SG203",
    "gradients that explode through depth",
    check,
    supersedes=("SG102", "SG201", "SG202", "SG205"),
)
