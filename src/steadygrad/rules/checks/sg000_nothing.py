"""SG000: a run with too little in it to be judged; silence would be taken for praise."""

from __future__ import annotations

from collections.abc import Iterator

from steadygrad.robust import ENOUGH
from steadygrad.rules.advice import code
from steadygrad.rules.base import Rule, finding
from steadygrad.rules.evidence.view import View
from steadygrad.rules.finding import Finding


def check(view: View) -> Iterator[Finding]:
    count = len(view.run)
    if count >= ENOUGH or view.optimizer != view.first_optimizer:
        return
    steps = f"{count} step{'s' * (count != 1)}" if count else "no optimizer step"
    seen = f"{steps} {'was' if count < 2 else 'were'} recorded"
    yield finding(
        view,
        "SG000",
        "info",
        1.0,
        f"Nothing to judge: {seen}.",
        evidence=[f"Rules need {ENOUGH} steps with finite gradients before they say anything."],
        steps=view.step,
        tensors=[],
        causes=[
            "the script ended before it trained",
            "the loop is one that cannot be seen from outside: torch.autograd.grad, plain JAX",
            "the steps were taken in another process, which has a run file of its own",
        ],
        fixes=[
            code(
                view,
                torch="import steadygrad.torch as sg\n"
                'sg.attach(optimizer, clip="none", model=model, run="run.db")',
                keras="import steadygrad.keras as sg\n"
                'model.fit(x, y, callbacks=[sg.GradientMonitor(run="run.db")])',
                jax="import steadygrad.jax as sg\n"
                'optimizer = sg.guard(optimizer, clip="none")\n'
                'sg.record("run.db", opt_state, loss)  # after each update',
            )
        ],
        figures={"steps": count},
    )


RULE = Rule("SG000", "nothing to judge", check)
