"""What the arithmetic of each method costs a step: the decision alone, without reading gradients.

    python benchmarks/deciding.py

On CPU gradients it runs in NumPy, where a call costs a microsecond or two whatever it works
on; so these figures hardly depend on the model. The least of several rounds.
"""

from __future__ import annotations

import time

import numpy as np

from steadygrad.policies import parse
from steadygrad.stats import GradientStats

TENSORS = 148
"""As many as GPT-2 small has."""
STEPS, ROUNDS = 150, 7
SPECS = (
    *("norm:1.0", "tensor-norm:1.0", "value:0.5", "norm-schedule:10,to=1,over=1000", "agc:0.01"),
    *("autoclip:10", "autoclip:percentile=10,window=1000", "zclip", "adagc", "spam", "update-rms"),
    *("skip", "skip:rule=sigma", "auto", "skip+norm:1.0", "skip+auto"),
)


def steps() -> list[GradientStats]:
    """Figures of a calm run."""
    generator = np.random.default_rng(0)
    names = tuple(f"layer{i}.weight" for i in range(TENSORS))
    none = np.zeros(TENSORS, np.int64)
    rows = np.exp(generator.normal(0, 0.3, (STEPS, TENSORS)))
    totals = np.sqrt((rows**2).sum(axis=1))
    sizes = (1000,) * TENSORS
    return [
        GradientStats(names, row, row, none, none, sizes, total, 2.0)
        for row, total in zip(rows, totals, strict=True)
    ]


def microseconds(spec: str, every: list[GradientStats]) -> float:
    """Time of one decision, behind the warm-up."""
    policy = parse(spec)
    state = policy.init(np, every[0].names, np.float64, np.int64)
    best = float("inf")
    for _ in range(ROUNDS + 1):
        began = time.perf_counter()
        for stats in every:
            state, _ = policy.decide(np, state, stats)
        best = min(best, (time.perf_counter() - began) / len(every))
    return 1e6 * best


def table() -> str:
    """Every method's cost, as Markdown."""
    every = steps()
    lines = [f"| `{spec}` | {microseconds(spec, every):.0f} |" for spec in SPECS]
    return "\n".join(["| policy | µs a step |", "|-|-|", *lines]) + "\n"


if __name__ == "__main__":
    print(table())
