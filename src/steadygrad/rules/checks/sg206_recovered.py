"""SG206: a training that was struck, and that recovery put right or gave up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from steadygrad.recovery.episodes import counted, episodes
from steadygrad.recovery.events import ACCEPT, RESTART, RESTORE, STOP
from steadygrad.recovery.triggers import NONFINITE
from steadygrad.rules.advice import clip_code, code, jax_stops_at_nan, lower_lr, recommended
from steadygrad.rules.base import Rule, finding
from steadygrad.rules.evidence import origins
from steadygrad.rules.evidence.stability import of_view
from steadygrad.rules.evidence.view import View
from steadygrad.rules.evidence.wording import percent
from steadygrad.rules.finding import Finding

MOST = 8
"""Acts that are told one by one."""
CALM = (ACCEPT, RESTORE, RESTART)
"""Acts that say of no harm."""

_CAUSES = (
    "single batches that the model has no sound gradient for: see which they are with "
    "steady.skip_batches() (PyTorch)",
    "a learning rate that is too high for where the training stands, or no warm-up",
    "weights or activations that were broken from outside: memory, another process, a bug",
)


def check(view: View) -> Iterator[Finding]:
    if view.acts:
        yield _finding(view)


def _finding(view: View) -> Finding:
    happened = episodes(view.acts)
    ended = any(act.act == STOP for act in view.acts)
    calm = all(act.act in CALM for act in view.acts)
    times = f"{len(happened):,} time" + "s" * (len(happened) != 1)
    triggers = Counter(act.trigger for act in view.acts if act.trigger)
    why = ", ".join(f"{trigger} ({count})" for trigger, count in triggers.most_common())
    more = [f"And {len(happened) - MOST:,} more."] if len(happened) > MOST else []
    return finding(
        view,
        "SG206",
        "error" if ended else "info" if calm else "warning",
        1.0,
        _title(view, times),
        evidence=[
            *([f"What struck: {why}."] if why else []),
            *(f"{str(episode)[0].upper()}{str(episode)[1:]}." for episode in happened[:MOST]),
            *more,
            *_cost(view),
            *origins.sentences(view),
        ],
        steps=sorted({act.step for act in view.acts}),
        tensors=[],
        causes=() if calm else _CAUSES,
        fixes=() if calm else _fixes(view, set(triggers)),
        figures={"acts": len(view.acts), "undone": view.undone},
    )


def _title(view: View, times: str) -> str:
    if all(act.act == RESTART for act in view.acts):
        return f"The launcher started the job again {times}; what follows is of the last start."
    return f"Recovery acted {times}: {counted(view.acts, view.undone)}."


def _cost(view: View) -> list[str]:
    stable = of_view(view)
    if not stable.recoveries:
        return []
    share = percent(stable.recoveries / stable.steps)
    return [
        f"{stable.recoveries:,} of {stable.steps:,} steps ({share}) count for nothing; the other "
        "findings are of the steps that remain."
    ]


def _fixes(view: View, triggers: set[str]) -> list[str]:
    fixes = list(origins.fixes(view))
    if triggers & set(NONFINITE) and not fixes:
        fixes.append(
            code(
                view,
                torch="import steadygrad.torch as sg\n"
                'sg.attach(optimizer, recover="auto", find_nan=True)  # names the operation',
                keras="assert np.isfinite(x).all() and np.isfinite(y).all()  # is it the data?",
                jax=jax_stops_at_nan(),
            )
        )
    if triggers - set(NONFINITE):
        fixes += [clip_code(view, f"norm:{recommended(view):g}"), lower_lr(view)]
    return fixes


RULE = Rule("SG206", "a training that recovery acted on", check)
