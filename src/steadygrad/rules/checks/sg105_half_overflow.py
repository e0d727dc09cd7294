"""SG105: float16 gradients over the largest float16."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from steadygrad.rules.advice import code
from steadygrad.rules.base import Rule, finding
from steadygrad.rules.evidence.breaks import Break, first_break, tell
from steadygrad.rules.evidence.dead import nothing_at_all
from steadygrad.rules.evidence.view import View
from steadygrad.rules.evidence.wording import number
from steadygrad.rules.finding import Finding

LARGEST = 65504.0


def check(view: View) -> Iterator[Finding]:
    half = {t.name for t in view.tensors if t.dtype == "float16"}
    if half and view.enough and nothing_at_all(view):
        yield _counted(view)
    story = first_break(view)
    if story is None:
        return
    broken = [name for name in story.tensors if name in half]
    near = max(_near(view, story, half), _loss_size(view, story))
    if broken and near > LARGEST / 16:
        yield _finding(view, story, broken, near)


def _counted(view: View) -> Finding:
    """The finding for losses of exactly 0 without a gradient: they were divided by an inf."""
    return finding(
        view,
        "SG105",
        "error",
        0.9,
        "The loss is exactly 0 and so is every gradient: a float16 sum or count overflows to inf, "
        "and what is divided by it is 0.",
        evidence=[
            f"Loss and gradient norm are 0 in all {len(view)} steps; the weights are float16, "
            "which ends at 65504: a sum over a batch, or the number of its elements, is soon more.",
        ],
        steps=[int(view.step[0]), int(view.step[-1])],
        tensors=[],
        causes=[
            "a mean written as a sum over a count, both in float16",
            "a mask that is summed in float16",
        ],
        fixes=[
            code(
                view,
                torch="loss = error.float().sum() / count.float()  # reduce in float32\n"
                "loss = error.float().mean()  # or let mean() count",
                keras='loss = keras.ops.mean(keras.ops.cast(error, "float32"))',
                jax="loss = jnp.mean(error.astype(jnp.float32))",
            )
        ],
        figures={},
    )


def _loss_size(view: View, story: Break) -> float:
    """The scaled loss where the run begins broken: its own gradient passes through float16."""
    size = abs(float(view.loss[story.index] * view.loss_scale[story.index]))
    return size if np.isfinite(size) and not story.before.size else 0.0


def _near(view: View, story: Break, half: set[str]) -> float:
    """The largest finite float16 element at the break or in the steps just before."""
    columns = [i for i, t in enumerate(view.tensors) if t.name in half]
    row = int(np.searchsorted(view.rows_read, story.index))
    if not columns:
        return 0.0
    part = view.figures("max_abs")[max(0, row - 3) : row + 1][:, columns]
    return float(np.nanmax(part, initial=0.0))


def _finding(view: View, story: Break, broken: list[str], near: float) -> Finding:
    scale = float(view.loss_scale[story.index])
    return finding(
        view,
        "SG105",
        "error" if story.applied or story.lost else "warning",
        0.93,
        f"float16 gradients overflow at step {story.step} in {broken[0]}.",
        evidence=[
            *tell(view, story),
            f"The largest finite figure nearby is {number(near)}; float16 ends at 65504.",
            f"The loss scale is {number(scale)}.",
        ],
        steps=[story.step],
        tensors=broken[:8],
        causes=[
            "weights and gradients are kept in float16 with no scaler that skips overflows",
            "the loss scale is fixed too high",
            "a loss that is summed over the batch instead of averaged",
        ],
        fixes=[
            code(
                view,
                torch="# weights in float32, autocast in bfloat16 where you can:\n"
                "with torch.autocast(device_type, dtype=torch.bfloat16):\n"
                "    loss = loss_fn(model(x), y)\n"
                "# with float16: scaler = torch.amp.GradScaler(); scaler.scale(loss).backward()",
                keras='keras.mixed_precision.set_global_policy("mixed_bfloat16")',
                jax="nn.Dense(n, dtype=jnp.bfloat16, param_dtype=jnp.float32)  # not float16",
            )
        ],
        figures={"largest": near, "loss_scale": scale},
    )


RULE = Rule(
    "SG105",
    "float16 overflow",
    check,
    supersedes=("SG101", "SG102", "SG106", "SG201", "SG202", "SG302"),
)
