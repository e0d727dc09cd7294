"""SG101: a NaN or inf that no explosion announced: an operation or the data made it."""

from __future__ import annotations

from collections.abc import Iterator

from steadygrad.rules.advice import code, jax_stops_at_nan, keeping_weights
from steadygrad.rules.base import Rule, finding
from steadygrad.rules.evidence import origins
from steadygrad.rules.evidence.breaks import Break, first_break, tell
from steadygrad.rules.evidence.view import View
from steadygrad.rules.finding import Finding

_CAUSES = (
    "an operation at the edge of its domain: log(0), sqrt(0) (its derivative is inf), 0/0, "
    "acos(1), exp of a large number, a softmax over a fully masked row",
    "a NaN or inf in the input batch or the targets",
    "a norm or standard deviation of a constant vector, without an epsilon",
)


def _fix(view: View) -> str:
    return (
        code(
            view,
            torch="assert torch.isfinite(batch).all()  # is it the data?\n"
            "torch.log(x.clamp_min(1e-6)); torch.sqrt(x + 1e-6)  # is it an operation?\n",
            keras="keras.ops.log(keras.ops.maximum(x, 1e-6)); keras.ops.sqrt(x + 1e-6)\n",
            jax=jax_stops_at_nan()
            + "safe = jnp.where(x > 0, x, 1.0); y = jnp.where(x > 0, jnp.log(safe), 0.0)\n"
            "size = jnp.sqrt(jnp.sum(x**2, -1) + 1e-12)  # of a norm or a deviation that may be 0\n"
            "assert np.isfinite(batch).all()  # is it the data?\n",
        )
        + f"# and keep the weights meanwhile:\n{keeping_weights(view)}"
    )


_SCALED = "a step that overflowed under the loss scale, and was applied all the same"
_DROPPED = (
    "scale, is_finite, loss, grads = scale.value_and_grad(loss_fn)(params)\n"
    "kept = functools.partial(jnp.where, is_finite)  # a step that overflows changes nothing\n"
    "params = jax.tree.map(kept, new_params, params)\n"
    "opt_state = jax.tree.map(kept, new_opt_state, opt_state)"
)


def _of_scale(view: View, story: Break) -> bool:
    """Whether Flax's `DynamicScale` is at work, which leaves it to the script to drop a step."""
    return view.framework == "jax" and view.amp and story.applied


def _title(story: Break) -> str:
    tensor = f" in {story.tensors[0]}" if story.tensors else ""
    return (
        f"Gradients turned non-finite at step {story.step}{tensor} without an explosion before it."
    )


def check(view: View) -> Iterator[Finding]:
    story = first_break(view)
    if story is None or story.exploded:
        return
    recovers = not story.applied and not story.lost
    yield finding(
        view,
        "SG101",
        "warning" if recovers else "error",
        0.75 if not story.before.size else 0.9,
        _title(story),
        evidence=[*origins.sentences(view), *tell(view, story)],
        steps=[story.step],
        tensors=story.tensors[:8],
        causes=(_SCALED, *_CAUSES) if _of_scale(view, story) else _CAUSES,
        fixes=[
            *([_DROPPED] if _of_scale(view, story) else []),
            *origins.fixes(view),
            *origins.look(view),
            _fix(view),
        ],
        figures={"growth_before": story.growth, "share": story.share},
    )


RULE = Rule("SG101", "a NaN or inf made by an operation", check, supersedes=("SG104",))
