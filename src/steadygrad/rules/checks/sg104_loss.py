"""SG104: a loss that is NaN or inf while every gradient is finite."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from steadygrad.rules.advice import code
from steadygrad.rules.base import Rule, finding
from steadygrad.rules.evidence import origins
from steadygrad.rules.evidence.view import View
from steadygrad.rules.evidence.wording import number, percent
from steadygrad.rules.finding import Finding

FEW = 3
"""Usable steps below which nothing is said."""

_CAUSES = (
    "a logarithm, root or power of a negative number: its value is NaN, its gradient is finite",
    "a logged or detached term of the loss is non-finite: a metric, a constant, log(0)",
    "the non-finite branch is cut off by a mask or torch.where, so it sends no gradient",
    "the mean of an empty selection, such as labels that are all ignored",
)


def check(view: View) -> Iterator[Finding]:
    odd = (np.isinf(view.loss) | view.loss_nan) & view.usable
    if not odd.any() or int(view.usable.sum()) < FEW:
        return
    index = np.flatnonzero(odd)
    share = float(odd.sum() / view.usable.sum())
    listed = ", ".join(str(s) for s in view.step[index[:8]])
    yield finding(
        view,
        "SG104",
        "error" if share > 0.5 or origins.origin_of(view) is not None else "warning",
        0.95,
        f"The loss is not finite at step {view.step[index[0]]} while the gradients are.",
        evidence=[
            *origins.sentences(view),
            f"Steps: {listed}{' ...' if len(index) > 8 else ''} ({percent(share)} of those with "
            "finite gradients).",
            _reaches(view, index),
        ],
        steps=view.step[index[:50]],
        tensors=[],
        causes=_CAUSES,
        fixes=[
            *origins.fixes(view),
            *origins.look(view),
            code(
                view,
                torch="for name, term in terms.items():\n"
                "    assert torch.isfinite(term).all(), name  # which term is it?",
                keras="keras.ops.isfinite(term)  # of every term of the loss",
                jax="jax.debug.print('{}', jnp.isfinite(term))  # of every term of the loss",
            ),
        ],
        figures={"share": share},
    )


def _reaches(view: View, index: np.typing.NDArray[np.int64]) -> str:
    """What is known of the gradients of those steps: finite is not the same as right."""
    norms = view.norm[index]
    if not norms.any():
        return "The gradients of these steps are all exactly zero: nothing was learned from them."
    return (
        f"The gradient norms of these steps are finite (up to {number(float(norms.max()))}), which "
        "does not make them right: of the logarithm or root of a negative number, the value is NaN "
        "and the gradient a finite number that leads nowhere."
    )


RULE = Rule(
    "SG104", "a non-finite loss with finite gradients", check, supersedes=("SG202", "SG402")
)
