"""The right order of a training step, as code, for the rules on a misplaced clip."""

from __future__ import annotations

from steadygrad.rules.advice import clip_code, code
from steadygrad.rules.evidence.clips import Call, figure
from steadygrad.rules.evidence.view import View


def fixes(view: View, call: Call, order: str | None = None) -> list[str]:
    """The fix that cannot be misplaced, and the right order for a call kept by hand.

    Args:
        view: the run.
        call: one of the faulty calls; its threshold is kept.
        order: PyTorch code in the right order; the plain order where None.

    Returns:
        Two snippets.
    """
    threshold = figure(call, "max_norm", 1.0)
    by_value = bool(call.get("by_value"))
    spec = f"{'value' if by_value else 'norm'}:{threshold:g}"
    name = "clip_grad_value_" if by_value else "clip_grad_norm_"
    plain = (
        "optimizer.zero_grad()\nloss.backward()\n"
        f"torch.nn.utils.{name}(model.parameters(), {threshold:g})\noptimizer.step()"
    )
    corrected = code(
        view,
        torch=order.format(clip=f"torch.nn.utils.{name}(model.parameters(), {threshold:g})")
        if order
        else plain,
        keras=f"optimizer = keras.optimizers.Adam(global_clipnorm={threshold:g})",
        jax=f"optimizer = optax.chain(optax.clip_by_global_norm({threshold:g}), optimizer)",
    )
    return [
        clip_code(view, spec) + "  # acts inside the step: drop your own call",
        corrected,
    ]
