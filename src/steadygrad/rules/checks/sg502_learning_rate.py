"""SG502: a learning rate too high: each step moves the weights by a large part of themselves."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from steadygrad.robust import ENOUGH, median
from steadygrad.rules.advice import clip_code, code, jax_frozen, keep_size, lower_lr
from steadygrad.rules.base import Rule, finding
from steadygrad.rules.evidence.breaks import first_break
from steadygrad.rules.evidence.depth import wrecked
from steadygrad.rules.evidence.loop import loop_of, searches
from steadygrad.rules.evidence.steps import Array
from steadygrad.rules.evidence.view import View
from steadygrad.rules.evidence.wording import number, times
from steadygrad.rules.finding import Finding

HIGH = 0.1
"""Update over weight; 1e-4 to 1e-1 is usual."""
REPLACED, DWARFS = 10.0, 1e3
"""Times the weights that a first step moves them by, and times the later norms that the first one
is, from which that step has thrown the training away."""
LITTLE = 0.3
"""Fall of the loss up to which next to nothing was learned."""
LEARNED = 0.1
"""Share of its first value that the loss ends below where first steps have done no harm."""
SLOW = 0.3
"""The same where the loss only stalls, which a small rate does as well."""


def check(view: View) -> Iterator[Finding]:
    raw = _raw(view)
    if raw:
        yield _added_as_they_are(view, raw)
    if _climbs(view):
        yield _uphill(view)
        return
    steps, ratios = view.sample("update_ratio")
    if not len(steps) or not len(view.weights):
        return
    if searches(view) and not (view.loss_trend.diverged or _exploded(view)):
        return
    limit = view.step[view.first_broken] if view.broken.any() else np.inf
    rows = ratios[steps <= limit][:, view.weights]
    each = [median(row) for row in rows]
    typical = median(each)
    wild = _wild(view) or _thrown(view, each)
    if wild:
        # a first step that multiplies the weights makes the later ones look small
        typical = max(typical, median(each[:3]))
    if (typical > HIGH and wild) or (typical > SLOW and _suffers(view)):
        yield _finding(view, typical, rows)
    elif wrecked(view):
        yield _first_steps(view, wrecked(view))
    elif _overshot(view, each):
        yield _first_step(view, each[0])


def _raw(view: View) -> list[str]:
    """Tensors whose gradients are added to the weights as they are, if there are any of note."""
    left = [t.name in loop_of(view).raw for t in view.tensors]
    moved = np.nanmax(np.where(view.good[:, None], view.norms, 0.0), axis=0, initial=0.0) > 0
    return [
        t.name
        for t, is_raw, moves in zip(view.tensors, left, moved, strict=True)
        if is_raw and moves
    ]


def _added_as_they_are(view: View, names: list[str]) -> Finding:
    return finding(
        view,
        "SG502",
        "error",
        0.95,
        f"{names[0]}{f' and {len(names) - 1} more' * (len(names) > 1)} go uphill: their gradients "
        "are handed on as updates, and are added to the weights.",
        evidence=["No transformation has touched them: not even the sign is turned."],
        steps=[int(view.step[0])],
        tensors=names[:8],
        causes=["optax.masked leaves what its mask leaves out as it is: it freezes nothing"],
        fixes=[jax_frozen("to freeze", "freeze")],
        figures={"tensors": len(names)},
    )


def _climbs(view: View) -> bool:
    """Whether the rate is negative, and the loss rises with it: a score may be meant to."""
    trend = view.loss_trend
    return bool((view.lr < 0).mean() > 0.5) and (trend.diverged or trend.worse) and not trend.signed


def _uphill(view: View) -> Finding:
    rate = median(view.lr)
    return finding(
        view,
        "SG502",
        "error",
        0.96,
        f"The steps go uphill: the learning rate is {number(rate)}, and the loss rises.",
        evidence=["What an optimizer adds to the weights has a minus sign.", view.loss_sentence],
        steps=[int(view.step[0]), int(view.step[-1])],
        tensors=[],
        causes=["a sign that is missing: optax.scale(lr) in place of optax.scale(-lr)"],
        fixes=[
            code(
                view,
                torch=f'for group in optimizer.param_groups:\n    group["lr"] = {number(-rate)}',
                keras=f"optimizer.learning_rate = {number(-rate)}",
                jax=f"optax.scale(-{number(-rate)})  # or optax.scale_by_learning_rate(lr)",
            )
        ],
        figures={"lr": rate},
    )


def _thrown(view: View, each: list[float]) -> bool:
    """Whether the first steps replaced the weights, the loss jumped with them, and little is left.

    A small linear model overshoots so, too, and then learns what there is.
    """
    losses, trend = view.loss[:4], view.loss_trend
    learned = trend.recorded and trend.end < LEARNED * trend.first
    return (
        max(each[:2], default=0.0) > 1
        and not learned
        and bool(np.nanmax(losses, initial=-np.inf) > losses[0] + 0.5 * abs(losses[0]))
    )


def _overshot(view: View, each: list[float]) -> bool:
    """Whether the first gradient dwarfs all others, its step the weights, and nothing is learned.

    Units that it has pushed to an end get small gradients from then on.
    """
    norms = view.norm[view.usable]
    if len(norms) < ENOUGH or not norms[0] > DWARFS * median(norms[1:]):
        return False
    return each[0] > REPLACED and (view.loss_trend.stalled or view.loss_trend.fall < LITTLE)


def _wild(view: View) -> bool:
    trend = view.loss_trend
    return trend.diverged or trend.blew_up or trend.worse or _exploded(view)


def _exploded(view: View) -> bool:
    """Whether an explosion ended in NaN: one that an operation made has another cause."""
    story = first_break(view)
    if story is None or story.huge:  # huge before any step: no rate has made it so
        return False
    return story.exploded or not story.before.size


def _suffers(view: View) -> bool:
    return view.loss_trend.stalled or _oscillates(view)


def _oscillates(view: View) -> bool:
    trend = view.loss_trend
    return trend.swing > 0.5 * abs(trend.end) and trend.end > 0.5 * trend.start


def _how(view: View) -> str:
    trend = view.loss_trend
    if trend.diverged or trend.blew_up or trend.worse:
        return "diverges"
    return "ends in NaN" if _exploded(view) else "jumps, oscillates or stalls"


def _first_steps(view: View, pace: float) -> Finding:
    return finding(
        view,
        "SG502",
        "error",
        0.88,
        f"The first steps are too large: they move the weights by {number(pace)} of their size, "
        "and the first layers get next to no gradient since.",
        evidence=[
            f"Median update over weight of the first samples: {number(pace)}"
            f"{_rate(median(view.lr), ' from the first step on')}.",
            "In the first two steps the layers got gradients of like size; the model normalises, "
            "so that its depth alone is no cause.",
            view.loss_sentence,
        ],
        steps=[int(view.step[0]), int(view.step[-1])],
        tensors=[],
        causes=["no warm-up: Adam's first steps are as long as lr, whatever the gradient"],
        fixes=[
            code(
                view,
                torch="scheduler = torch.optim.lr_scheduler.LambdaLR(\n"
                "    optimizer, lambda step: min(1.0, (step + 1) / 150))\n"
                "scheduler.step()  # after every optimizer.step()",
                keras="keras.optimizers.schedules.CosineDecay(\n"
                "    0.0, decay_steps=steps, warmup_target=lr, warmup_steps=150)",
                jax="optax.warmup_cosine_decay_schedule(0.0, lr, 150, steps)",
            ),
            lower_lr(view),
        ],
        figures={"update_ratio": pace},
    )


def _first_step(view: View, moved: float) -> Finding:
    norms = view.norm[view.usable]
    return finding(
        view,
        "SG502",
        "error",
        0.85,
        f"The first step threw the weights away: it moved them by {times(moved)} their "
        "size, and nothing is learned since.",
        evidence=[
            f"The first gradient norm is {number(float(norms[0]))}, the median since "
            f"{number(median(norms[1:]))}: units at an end let little through.",
            view.loss_sentence,
        ],
        steps=[int(view.step[0])],
        tensors=[],
        causes=[
            "gradients that are huge at the start: weights initialised too large, a product over "
            "depth or time",
            "no clip, and a learning rate that is not made for them",
        ],
        fixes=[
            keep_size(view),
            clip_code(view, "norm:1.0"),
            lower_lr(view),
        ],
        figures={"update_ratio": moved},
    )


def _finding(view: View, typical: float, rows: Array) -> Finding:
    trend = view.loss_trend
    lr = median(view.lr)
    how = _how(view)
    said = (
        [
            f"The loss goes from {number(trend.first)} to {number(trend.end)}; it changes by "
            f"{number(trend.swing)} from one step to the next."
        ]
        if trend.recorded
        else []
    )
    factor = 10 ** np.ceil(np.log10(typical / 0.01))
    return finding(
        view,
        "SG502",
        "error",
        min(0.93, 0.8 + 0.08 * float(np.log10(typical / HIGH))),
        f"The learning rate is too high: a step moves the weights by {number(typical)} of their "
        f"size, and the loss {how}.",
        evidence=[
            f"Median update over weight: {number(typical)} (usual: 0.0001 to 0.1); "
            f"highest {number(float(np.nanmax(rows, initial=0.0)))}{_rate(lr)}.",
            *said,
        ],
        steps=[int(view.step[0]), int(view.step[-1])],
        tensors=[],
        causes=["the learning rate", "no warm-up", "weights initialised too small for this rate"],
        fixes=[*_line_search(view), lower_lr(view, float(min(max(factor, 10), 1e6)))],
        figures={"update_ratio": typical, "lr": lr},
    )


def _line_search(view: View) -> list[str]:
    """Where the step is a search: one that looks how far it may go."""
    if not searches(view) or view.framework != "torch":
        return []
    return ['torch.optim.LBFGS(model.parameters(), line_search_fn="strong_wolfe")']


def _rate(lr: float, since: str = "") -> str:
    """The rate, where it is known: that of updates by hand is not."""
    return f"; lr {number(lr)}{since}" if np.isfinite(lr) else ""


RULE = Rule(
    "SG502",
    "a learning rate that is too high",
    check,
    supersedes=("SG102", "SG201", "SG202", "SG302", "SG304", "SG205"),
)
