"""SG104: a loss that is NaN or inf while every gradient is finite."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from steadygrad.rules.advice import code
from steadygrad.rules.base import Rule, finding
from steadygrad.rules.evidence import origins
from steadygrad.rules.evidence.view import View, percent
from steadygrad.rules.finding import Finding

_CAUSES = (
    "a logged or detached term of the loss is non-finite: a metric, a constant, log(0)",
    "the non-finite branch is cut off by a mask or torch.where, so it sends no gradient",
    "the mean of an empty selection",
)


def check(view: View) -> Iterator[Finding]:
    finite = np.isfinite(view.loss)
    odd = ~finite & view.usable
    # a NaN stands for "unknown" as well: it counts where losses are otherwise known
    known = finite.mean() > 0.2 if len(view) else False
    odd &= np.isinf(view.loss) | known
    if not odd.any() or int(view.usable.sum()) < 3:
        return
    index = np.flatnonzero(odd)
    share = float(odd.mean())
    listed = ", ".join(str(s) for s in view.step[index[:8]])
    yield finding(
        view,
        "SG104",
        "error" if share > 0.5 else "warning",
        0.9 if np.isinf(view.loss[index]).any() or known else 0.7,
        f"The loss is not finite at step {view.step[index[0]]} while the gradients are.",
        evidence=[
            *origins.told(view),
            f"Steps: {listed}{' ...' if len(index) > 8 else ''} ({percent(share)} of all).",
            "The gradient norms of these steps are finite: "
            "the broken term does not reach the weights.",
        ],
        steps=view.step[index[:50]],
        tensors=[],
        causes=_CAUSES,
        fixes=[
            *origins.fixes(view),
            code(
                view,
                torch="for name, term in terms.items():\n"
                "    assert torch.isfinite(term), name  # which term is it?",
                keras="keras.ops.isfinite(term)  # of every term of the loss",
                jax="jax.debug.print('{}', jnp.isfinite(term))  # of every term of the loss",
            ),
        ],
        figures={"share": share},
    )


RULE = Rule("SG104", "a non-finite loss with finite gradients", check)
