"""SG504: a norm that the script reads and that is not the norm of what is applied."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from steadygrad.robust import median, spread
from steadygrad.rules.advice import clip_code, code
from steadygrad.rules.base import Rule, finding
from steadygrad.rules.evidence.clips import Call, calls, figure
from steadygrad.rules.evidence.view import View
from steadygrad.rules.evidence.wording import number, times
from steadygrad.rules.finding import Finding


def check(view: View) -> Iterator[Finding]:
    ratios = _ratios(view, calls(view))
    if len(ratios) < 8:
        return
    ratio = median(ratios)
    steady = spread(np.log(ratios)) < 0.02
    if steady and abs(np.log(ratio)) > np.log(1.2):
        limits = [figure(c, "max_norm") for c in calls(view)]
        yield _finding(view, ratio, len(ratios), median(limits) / ratio)


def _ratios(view: View, clip_calls: list[Call]) -> list[float]:
    """What the script's call left over what is applied, for whole, unscaled, single 2-norm calls.

    Gradients that were changed after the call are recorded as they are applied.
    """
    recorded = dict(zip(view.step.tolist(), view.norm.tolist(), strict=True))
    whole = [c for c in clip_calls if not c.get("after_step") and not c.get("repeated")]
    whole = [c for c in whole if figure(c, "params", 0) == figure(c, "of_params", 0) > 0]
    whole = [c for c in whole if figure(c, "norm_type", 2) == 2 and c.get("unscaled") is not False]
    ratios: list[float] = []
    for call in whole:
        norm, applied = figure(call, "norm"), recorded.get(int(call["step"]), np.nan)
        if np.isfinite(norm) and np.isfinite(applied) and norm > 0 and applied > 0:
            before, after = norm / applied, norm * figure(call, "coef", 1.0) / applied
            ratios.append(min(before, after, key=lambda r: abs(math.log(r))))
    return ratios


def _finding(view: View, ratio: float, count: int, limit: float) -> Finding:
    return finding(
        view,
        "SG504",
        "warning",
        0.85,
        f"The norm that the script clips by is {times(ratio)} the norm of the gradients.",
        evidence=[
            f"In {count} steps the script's norm over the recorded one stays at {number(ratio)}.",
            f"The threshold is in truth {times(1 / ratio)} what it says.",
            *_guess(view, ratio),
        ],
        steps=[int(view.step[0]), int(view.step[-1])],
        tensors=[],
        causes=[
            "gradients that still carry a loss scale or a sum over ranks or micro-batches",
            "the local norm of one shard: low by the square root of the number of shards",
        ],
        fixes=_fixes(view, ratio, limit),
        figures={"ratio": ratio},
    )


def _fixes(view: View, ratio: float, limit: float) -> list[str]:
    """Clip what is applied; of a shard, take the whole norm first."""
    applied = clip_code(view, f"norm:{number(limit)}") + "  # reads the gradients that are applied"
    order = code(
        view,
        torch="for p in model.parameters():  # before the clip, not after it\n"
        f"    p.grad /= {number(ratio)}",
        keras="# divide the gradients by the loss scale before clipping, not after",
        jax=f"grads = jax.tree.map(lambda g: g / {number(ratio)}, grads)  # before the clip",
    )
    if _shards(ratio) is None:
        return [applied, order]
    whole = code(
        view,
        torch="norm = total_norm.full_tensor()  # of a DTensor: the norm over all shards",
        keras="norm = keras.ops.sqrt(all_reduce_sum(local_norm ** 2))  # over all shards",
        jax="norm = jnp.sqrt(jax.lax.psum(local_norm ** 2, axis_name))",
    )
    return [whole, applied]


def _shards(ratio: float) -> int | None:
    """How many shards a norm that is too low may be the local norm of one of."""
    shards = 1 / ratio**2
    return round(shards) if ratio < 1 and abs(shards - round(shards)) < 0.1 else None


def _guess(view: View, ratio: float) -> list[str]:
    power = float(np.log2(ratio))
    if ratio > 4 and abs(power - round(power)) < 0.02:
        return [f"{number(ratio)} is 2 to the power {round(power)}: a loss scale or a batch count."]
    shards = _shards(ratio)
    if shards is not None:
        return [f"It is 1/sqrt({shards}): the norm of one of {shards} shards."]
    return []


RULE = Rule(
    "SG504", "a logged norm that is sharded or scaled", check, supersedes=("SG401", "SG402")
)
