"""SG801: a rank that all others wait for."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from steadygrad.rules.advice import code
from steadygrad.rules.base import Rule, finding
from steadygrad.rules.evidence.ranks import RankTable, rank_table
from steadygrad.rules.evidence.view import View
from steadygrad.rules.evidence.wording import number, percent
from steadygrad.rules.finding import Finding

WARM = 3
"""First steps, which load libraries and compile: nothing is told from them."""
FEW = 20
"""Steps below which nothing is said."""
SHARE = 0.2
"""Part of a step's time from which a wait is worth a word."""
SECONDS = 0.005
"""A wait below this may be what recording costs the rank that records."""
MOSTLY = 0.8
"""Part of the steps in which the rank must be the slowest: one that pauses now and then is not."""


def check(view: View) -> Iterator[Finding]:
    table = rank_table(view)
    if table is None:
        return
    rows = table.complete & np.isfinite(table.busy).all(axis=1) & (table.steps >= WARM)
    rows &= np.isfinite(table.seconds).all(axis=1)
    if int(rows.sum()) < FEW:
        return
    busy = table.busy[rows]
    slowest = int(np.argmax(np.median(busy, axis=0)))
    others = np.median(np.delete(busy, slowest, axis=1), axis=1)
    wait = float(np.median(busy[:, slowest] - others))
    step = float(np.median(table.seconds[rows]))
    often = float(np.mean(busy[:, slowest] > others))
    if step > 0 and wait > max(SHARE * step, SECONDS) and often >= MOSTLY:
        yield _finding(
            view, table, slowest, wait, step, often, float(np.median(busy[:, slowest])), others
        )


def _finding(
    view: View,
    table: RankTable,
    slowest: int,
    wait: float,
    step: float,
    often: float,
    busy: float,
    others: np.typing.NDArray[np.float64],
) -> Finding:
    rank, share = int(table.ranks[slowest]), min(wait / step, 1.0)
    return finding(
        view,
        "SG801",
        "warning",
        0.9 if share > 2 * SHARE else 0.75,
        f"Rank {rank} holds the others up: {percent(share)} of a step is spent waiting for it.",
        evidence=[
            f"Outside backward passes and collectives rank {rank} is busy "
            f"{number(1000 * busy)} ms a step (median), the other "
            f"{len(table.ranks) - 1} {number(1000 * float(np.median(others)))} ms; a step takes "
            f"{number(1000 * step)} ms on all.",
            f"It is slower than the others in {percent(often)} of the steps that were told.",
        ],
        causes=[
            "its part of the data is larger, or read from a slower place",
            "it alone logs, evaluates, saves or draws at every step",
            "its machine has fewer free cores: loader workers of other ranks, another job",
        ],
        fixes=[
            code(
                view,
                torch="loader = DataLoader(data, batch_size, sampler=DistributedSampler(data),\n"
                "                    num_workers=4, persistent_workers=True)\n"
                "# and on this rank: log and save every 100th step, not at each",
                keras="data = data.shard(ranks, rank).prefetch(tf.data.AUTOTUNE)",
                jax="data = data[jax.process_index()::jax.process_count()]  # parts of equal size",
            )
        ],
        figures={"rank": rank, "share": share},
    )


RULE = Rule("SG801", "a straggler among the ranks", check)
