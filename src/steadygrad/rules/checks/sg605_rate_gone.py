"""SG605: a learning rate that is gone: for most of the run, steps move nothing."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from steadygrad.robust import ENOUGH, columns_median, median
from steadygrad.rules.advice import code
from steadygrad.rules.base import Rule, finding
from steadygrad.rules.evidence.view import View
from steadygrad.rules.evidence.wording import number, percent
from steadygrad.rules.finding import Finding

TINY = 1e-2
"""Share of the run's highest rate under which a rate is next to nothing."""
MOST = 0.5
"""Share of the run over which it must be so."""
STILL = 0.3
"""Share of its size before, above which the norm has not fallen: there was more to learn."""
SOLVED = 0.05
"""Share of the first loss under which a run has got where it was going."""
FAINT = 1e-2
"""A gradient norm so small that the gradient, and not the rate, is what is missing."""
UNMOVED = 1e-3
"""Part of their size that no weight has moved by in the whole run."""
SHORT = 200
"""Steps of a short training: how far a shorter run went is judged as if it had gone on to here."""


def check(view: View) -> Iterator[Finding]:
    if not view.enough:
        return
    if _never(view):
        yield _zero(view)
        return
    since = _gone_since(view)
    if since is not None and _unfinished(view, since):
        yield _gone(view, since)
    elif view.loss_trend.stalled and _unmoved(view) and _has_gradients(view):
        yield _too_small(view)


def _unmoved(view: View) -> bool:
    """Whether no weight has moved, and a few steps are not the reason."""
    return view.travel * max(1.0, SHORT / len(view)) < UNMOVED


def _never(view: View) -> bool:
    """Whether the rate is 0 at every step, and no weight was seen to move all the same."""
    return bool((view.lr == 0).all()) and not view.travel > 0


def _zero(view: View) -> Finding:
    return finding(
        view,
        "SG605",
        "error",
        0.97,
        f"The learning rate is 0 at all {len(view)} steps: nothing is trained.",
        evidence=["It is recorded before every step.", view.loss_sentence],
        steps=[int(view.step[0]), int(view.step[-1])],
        tensors=[],
        causes=[
            "a warm-up whose factor stays at 0: an integer division, or a scheduler that is never "
            "stepped",
            "a warm-up that is longer than the run",
        ],
        fixes=[
            code(
                view,
                torch="scheduler = torch.optim.lr_scheduler.LambdaLR(\n"
                "    optimizer, lambda step: min(1.0, (step + 1) / warmup))  # /, not //\n"
                "scheduler.step()  # after every optimizer.step()",
                keras="keras.optimizers.schedules.CosineDecay(\n"
                "    0.0, decay_steps=steps, warmup_target=lr, warmup_steps=warmup)",
                jax="optax.warmup_cosine_decay_schedule(0.0, lr, warmup, steps)",
            )
        ],
        figures={"lr": 0.0},
    )


def _has_gradients(view: View) -> bool:
    """Whether most matrices have something to move by; where they have not, no rate helps."""
    zeros = columns_median(view.zeros[view.good][:, view.weights])
    return bool(median(view.norm[view.usable]) > FAINT and not (zeros == 1).mean() > 0.5)


def _gone_since(view: View) -> int | None:
    """Place from which the rate stays next to nothing, if most of the run lies behind it."""
    rates = view.lr
    if not np.isfinite(rates).all() or not rates.max() > 0:
        return None
    small = rates < TINY * rates.max()
    late = np.flatnonzero(~small)
    since = int(late[-1]) + 1
    return since if len(rates) - since >= max(ENOUGH, MOST * len(rates)) else None


def _unfinished(view: View, since: int) -> bool:
    """Whether the loss is flat since, and neither it nor the norm had got anywhere near its end."""
    before = view.loss[: since + 1]
    after = view.loss[since:]
    first, reached, end = (
        median(before[:3]),
        median(after[: max(3, len(after) // 5)]),
        median(after[-max(3, len(after) // 5) :]),
    )
    if not np.isfinite([first, reached, end]).all():
        return False
    flat = abs(reached - end) <= max(0.05 * abs(reached), view.loss_trend.noise)
    start = median(view.norm[: max(3, since)][view.usable[: max(3, since)]])
    norms = view.norm[since:][view.usable[since:]]
    return flat and abs(end) > SOLVED * abs(first) and median(norms) > STILL * start


def _gone(view: View, since: int) -> Finding:
    highest, last = float(view.lr.max()), float(view.lr[-1])
    return finding(
        view,
        "SG605",
        "error",
        0.92,
        f"The learning rate is gone from step {view.step[since]} on: {number(last)} at the end, "
        f"{number(highest)} at its highest.",
        evidence=[
            f"For {percent(1 - since / len(view))} of the run the rate is under a hundredth of its "
            "highest.",
            f"The loss has stood still since: {number(median(view.loss[since:][:8]))} then, "
            f"{number(median(view.loss[-8:]))} at the end.",
            f"The gradient norm has not: its median since is "
            f"{number(median(view.norm[since:][view.usable[since:]]))}.",
        ],
        steps=[int(view.step[since]), int(view.step[-1])],
        tensors=[],
        causes=[
            "a schedule whose lengths are meant in epochs is stepped after every batch",
            "a schedule that is too short for the run, or decays too fast",
            "a plateau scheduler that is told to wait for a loss that rises",
        ],
        fixes=[
            code(
                view,
                torch="for epoch in range(epochs):\n    for batch in loader:\n"
                "        train(batch)\n    scheduler.step()  # once an epoch, not once a batch",
                keras="keras.optimizers.schedules.CosineDecay(lr, decay_steps=epochs * batches)",
                jax="optax.cosine_decay_schedule(lr, decay_steps=epochs * batches)",
            ),
            *_plateau(view),
        ],
        figures={"since": int(view.step[since]), "lr": last},
    )


def _plateau(view: View) -> list[str]:
    """Where the rate falls in a few steps: a scheduler that reacts may be told the wrong thing."""
    falls = np.unique(view.lr[np.isfinite(view.lr) & (view.lr > 0)])
    if len(falls) < 3 or len(falls) > len(view) / 4:
        return []
    return [
        code(
            view,
            torch="scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(\n"
            '    optimizer, mode="min", patience=10)  # of a loss; "max" is for an accuracy',
            keras='keras.callbacks.ReduceLROnPlateau(monitor="loss", mode="min", patience=10)',
            jax="optax.contrib.reduce_on_plateau(patience=10)  # given the loss",
        )
    ]


def _too_small(view: View) -> Finding:
    rate = median(view.lr)
    factor = min(max(0.1 / max(view.travel, 1e-12), 10.0), 1e6)
    return finding(
        view,
        "SG605",
        "warning",
        0.85,
        f"The learning rate is too small: {number(rate)} moves no weight by more than "
        f"{number(view.travel)} of its size in the whole run.",
        evidence=[
            f"Steps times the median update over weight: {number(view.travel)}.",
            view.loss_sentence,
        ],
        steps=[int(view.step[0]), int(view.step[-1])],
        tensors=[],
        causes=["a learning rate meant for another optimizer", "a warm-up longer than the run"],
        fixes=[
            code(
                view,
                torch="for group in optimizer.param_groups:\n"
                f'    group["lr"] = {number(rate * factor)}  # was {number(rate)}',
                keras=f"optimizer.learning_rate = {number(rate * factor)}  # was {number(rate)}",
                jax=f"optimizer = optax.adam({number(rate * factor)})  # was {number(rate)}",
            )
        ],
        figures={"travel": view.travel, "lr": rate},
    )


RULE = Rule("SG605", "a learning rate that is gone", check, supersedes=("SG301", "SG302", "SG305"))
