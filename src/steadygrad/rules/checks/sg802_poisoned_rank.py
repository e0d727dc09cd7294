"""SG802: a NaN or inf that one rank of the job brings."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from steadygrad.rules.advice import code
from steadygrad.rules.base import Rule, finding
from steadygrad.rules.evidence.ranks import RankTable, named, rank_table
from steadygrad.rules.evidence.steps import Array
from steadygrad.rules.evidence.view import View
from steadygrad.rules.evidence.wording import percent
from steadygrad.rules.finding import Finding
from steadygrad.vocabulary import NAN_ORIGIN


def check(view: View) -> Iterator[Finding]:
    table = rank_table(view)
    if table is None:
        return
    broken_loss = (table.loss_known > 0) & ~np.isfinite(table.loss)
    # averaged gradients are broken on all ranks alike: then only the losses tell them apart
    for broken, what in ((broken_loss, "loss"), (table.nonfinite > 0, "own gradients")):
        if broken is not broken_loss and table.in_pieces:
            return  # a piece is a sum over all ranks: who holds it has not brought what is in it
        some = table.complete & broken.any(axis=1) & (2 * broken.sum(axis=1) <= broken.shape[1])
        if some.any():
            yield _finding(view, table, broken, some, what)
            return


def _finding(view: View, table: RankTable, broken: Array, some: Array, what: str) -> Finding:
    first = int(np.flatnonzero(some)[0])
    ranks = table.ranks[broken[first]]
    same = some & broken[:, broken[first]].all(axis=1)
    steps = table.steps[same]
    held_back = np.isin(steps, view.step[view.skipped]).all()
    whose, is_not = named(ranks), "is not" if len(ranks) == 1 or what == "loss" else "are not"
    its = "its" if len(ranks) == 1 else "their"
    return finding(
        view,
        "SG802",
        "warning" if held_back else "error",
        0.95,
        f"{whose} alone {'brings' if len(ranks) == 1 else 'bring'} NaN or inf into step "
        f"{steps[0]}: {its} {what} {is_not} finite there, those of the other "
        f"{len(table.ranks) - len(ranks)} are.",
        evidence=[
            f"Steps: {', '.join(map(str, steps[:8]))}{' ...' if len(steps) > 8 else ''} "
            f"({percent(len(steps) / table.complete.sum())} of those that all ranks told of).",
            *_origins(view, ranks),
            "These steps were skipped on all ranks."
            if held_back
            else "They reached the weights of all ranks: one rank's NaN is everyone's after the "
            "gradients are averaged.",
        ],
        steps=steps[:50],
        causes=[
            "a broken row in the part of the data that this rank reads",
            "a fault of its device: the same rank again and again, whatever the data",
            "an empty batch: a mean over nothing is NaN",
        ],
        fixes=[
            code(
                view,
                torch='sg.attach(optimizer, model=model, on_nonfinite="skip", find_nan=True)\n'
                "# names the rows of the rank's batch; skips the step on all ranks",
                keras='sg.attach(optimizer, on_nonfinite="skip")  # skips the step on all ranks',
                jax='optimizer = sg.guard(optimizer, clip="none", on_nonfinite="skip")',
            )
        ],
        figures={"rank": int(ranks[0]), "steps": len(steps)},
    )


def _origins(view: View, ranks: Array) -> list[str]:
    """What these ranks found of where it came from."""
    data = [
        event.data for event in view.events(NAN_ORIGIN) if event.data.get("rank") in ranks.tolist()
    ]
    rows = [each for each in data if each.get("phase") == "input" and each.get("rows")]
    return [
        f"Rank {each['rank']} found it in its inputs, in rows "
        f"{', '.join(map(str, each['rows'][:8]))} of its batch."
        for each in rows[:2]
    ]


RULE = Rule("SG802", "a rank that brings NaN", check)
