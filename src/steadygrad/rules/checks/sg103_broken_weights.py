"""SG103: weights that hold NaN or inf before any gradient does."""

from __future__ import annotations

from collections.abc import Iterator

from steadygrad.rules.advice import code
from steadygrad.rules.base import Rule, finding
from steadygrad.rules.evidence.view import View
from steadygrad.rules.evidence.weights import broken_weights
from steadygrad.rules.finding import Finding

_CAUSES = (
    "a checkpoint that was saved after the run had broken",
    "an initialisation that divides by zero, or uninitialised memory (torch.empty)",
    "a step that overflowed the weights themselves",
)


def check(view: View) -> Iterator[Finding]:
    broken = broken_weights(view)
    if broken is not None and not broken.by_update:
        yield _finding(view, broken.step, broken.names)


def _finding(view: View, step: int, names: list[str]) -> Finding:
    when = "from the first step" if step == int(view.step[0]) else f"at step {step}"
    good = "there is none in this run" if step == 0 else f"it is of step {step - 1} or earlier"
    return finding(
        view,
        "SG103",
        "error",
        0.97,
        f"The weights are not finite {when}: {names[0]}"
        + (f" and {len(names) - 1} more." if len(names) > 1 else "."),
        evidence=[
            f"{len(names)} of {len(view.tensors)} tensors hold NaN or inf before step {step}.",
            f"Clipping can't recover this: restart from the last good checkpoint ({good}).",
        ],
        steps=[step],
        tensors=names[:8],
        causes=_CAUSES,
        fixes=[
            code(
                view,
                torch='state = torch.load("last_good.pt")\n'
                "assert all(v.isfinite().all() for v in state.values() if v.is_floating_point())\n"
                "model.load_state_dict(state)",
                keras='model.load_weights("last_good.weights.h5")\n'
                "assert all(np.isfinite(w).all() for w in model.get_weights())",
                jax="assert all(jnp.isfinite(w).all() for w in jax.tree.leaves(params))",
            )
        ],
        figures={"tensors": len(names)},
    )


RULE = Rule(
    "SG103", "weights that are already non-finite", check, supersedes=("SG101", "SG102", "SG105")
)
