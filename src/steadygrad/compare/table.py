"""From outcomes to a table that claims no more than its seeds show.

A difference counts only where it exceeds the spread of the seeds: the larger of
the two policies' ranges from their best to their worst seed. With one seed there
is no spread, hence no winner.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from steadygrad.compare.measuring import TrainingResult
from steadygrad.notebook.cards import Card
from steadygrad.report.numbers import figure
from steadygrad.text import listed

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Row:
    """One policy over its seeds.

    Attributes:
        spec: the policy.
        outcomes: one a seed.
        final_loss: mean over the seeds that did not diverge; NaN where all did.
        spread: their largest minus their smallest final loss; NaN under two.
        standing: ``best``, ``level with the best``, ``worse``, ``diverged`` or, where seeds
            are too few or record no loss, empty.
    """

    spec: str
    outcomes: tuple[TrainingResult, ...]
    final_loss: float
    spread: float
    standing: str = ""

    @property
    def diverged(self) -> int:
        """How many seeds diverged or failed."""
        return sum(bool(outcome.trouble) for outcome in self.outcomes)

    def mean(self, figure: str) -> float:
        """Mean of an outcome's figure over the seeds that have it."""
        values = [getattr(outcome, figure) for outcome in self.outcomes]
        finite = [v for v in values if math.isfinite(v)]
        return float(np.mean(finite)) if finite else math.nan

    def band(self) -> tuple[Floats, Floats, Floats, Floats]:
        """Steps, and lowest, median and highest loss over the seeds at each, ``[points]``."""
        curves = [o.curve for o in self.outcomes if o.curve is not None]
        points = min((c.steps.size for c in curves), default=0)
        if not points:
            empty = np.array([])
            return empty, empty, empty, empty
        longest = max(curves, key=lambda c: c.steps[-1]).steps
        table = np.array([np.interp(longest, c.steps, c.losses, right=np.nan) for c in curves])
        table = np.where(np.isfinite(table), table, np.inf)
        low, middle, high = np.sort(table, axis=0)[[0, (len(table) - 1) // 2, -1]]
        return longest, low, middle, high


@dataclass(frozen=True)
class Comparison:
    """Policies side by side.

    Attributes:
        rows: one a policy, in the order asked for.
        sentence: what the table shows, and no more.
        seeds: number of seeds.
        command: the script's command line.
        alike: seeds changed nothing in any policy, so the script sets its own generators.
        optimizer: which of the script's several optimizers it is about; empty for one alone.
    """

    rows: tuple[Row, ...]
    sentence: str
    seeds: int
    command: tuple[str, ...]
    alike: bool
    optimizer: str = ""

    def _repr_html_(self) -> str:
        return self.card.as_html()

    @property
    def card(self) -> Card:
        """The comparison as a notebook shows it: what it shows in a sentence, a line a policy."""
        level = "warning" if any(row.diverged for row in self.rows) else "ok"
        figures = (("seeds", str(self.seeds)), ("policies", str(len(self.rows))))
        title = f"{self.optimizer}: {self.sentence}" if self.optimizer else self.sentence
        return Card(title, level, figures, sentences=tuple(map(_in_words, self.rows)))

    def to_dict(self) -> dict[str, object]:
        """The same as strict JSON holds it; numbers that are not finite become None."""
        return {
            "command": list(self.command),
            "seeds": self.seeds,
            "sentence": self.sentence,
            "alike": self.alike,
            "policies": [_row(row) for row in self.rows],
        }


def _in_words(row: Row) -> str:
    diverged = f"{row.diverged} of {len(row.outcomes)} diverged" if row.diverged else ""
    loss = f"final loss {figure(row.final_loss)}" if math.isfinite(row.final_loss) else ""
    spread = f"seeds' spread {figure(row.spread)}" if math.isfinite(row.spread) else ""
    return f"{row.spec}: {', '.join(filter(None, (loss, spread, row.standing, diverged)))}"


def judge_each(outcomes: Sequence[TrainingResult], command: Sequence[str]) -> list[Comparison]:
    """Lay outcomes side by side, those of each optimizer by themselves.

    Args:
        outcomes: every cell's, in any order; one that names no optimizer counts for each.
        command: the script's command line.

    Returns:
        One comparison for each optimizer.

    Example:
        >>> ends = ((1, "D"), (9, "G"))
        >>> two = [TrainingResult("auto", 0, final_loss=x, optimizer=o) for x, o in ends]
        >>> [(c.optimizer, c.rows[0].final_loss) for c in judge_each(two, ["gan.py"])]
        [('D', 1.0), ('G', 9.0)]
    """
    names = list(dict.fromkeys(o.optimizer for o in outcomes if o.optimizer)) or [""]
    return [
        replace(judge([o for o in outcomes if o.optimizer in ("", name)], command), optimizer=name)
        for name in names
    ]


def judge(outcomes: Sequence[TrainingResult], command: Sequence[str]) -> Comparison:
    """Lay outcomes of one optimizer side by side.

    Args:
        outcomes: every cell's, in any order.
        command: the script's command line.

    Example:
        >>> o = [TrainingResult(s, i, steps=9, final_loss=x + i / 10)
        ...      for s, x in (("none", 2.0), ("auto", 1.0)) for i in range(3)]
        >>> judge(o, ["train.py"]).sentence
        "auto ends lowest, at 1.1; the others are worse by more than the seeds' spread."
    """
    specs = list(dict.fromkeys(outcome.spec for outcome in outcomes))
    rows = [_gather(spec, [o for o in outcomes if o.spec == spec]) for spec in specs]
    seeds = len({outcome.seed for outcome in outcomes})
    placed = _place(rows, seeds)
    alike = seeds > 1 and all(row.spread == 0 for row in rows if math.isfinite(row.spread))
    alike = alike and any(math.isfinite(row.spread) for row in rows)
    sentence = _sentence(placed, seeds, alike)
    return Comparison(tuple(placed), sentence, seeds, tuple(command), alike)


def _gather(spec: str, outcomes: Sequence[TrainingResult]) -> Row:
    sound = [o.final_loss for o in outcomes if not o.trouble and math.isfinite(o.final_loss)]
    mean = float(np.mean(sound)) if sound else math.nan
    spread = max(sound) - min(sound) if len(sound) > 1 else math.nan
    return Row(spec, tuple(sorted(outcomes, key=lambda o: o.seed)), mean, spread)


def _place(rows: Sequence[Row], seeds: int) -> list[Row]:
    """The rows with their standing: the best is among those with the fewest diverged seeds."""
    judged = [row for row in rows if math.isfinite(row.final_loss)]
    if not judged:
        return [_stand(row, "diverged" if row.diverged else "") for row in rows]
    best = min(judged, key=lambda row: (row.diverged, row.final_loss))
    return [_stand(row, _standing(row, best, seeds)) for row in rows]


def _standing(row: Row, best: Row, seeds: int) -> str:
    if row.diverged > best.diverged:
        return "diverged"
    if row is best:
        return "best" if seeds > 1 else ""
    if not math.isfinite(row.final_loss) or seeds < 2:
        return ""
    spreads = [s for s in (row.spread, best.spread) if math.isfinite(s)]
    if not spreads:
        return ""
    return "worse" if row.final_loss - best.final_loss > max(spreads) else "level with the best"


def _stand(row: Row, standing: str) -> Row:
    return Row(row.spec, row.outcomes, row.final_loss, row.spread, standing)


def _sentence(rows: Sequence[Row], seeds: int, alike: bool) -> str:
    """Who won, if anybody did, and who diverged."""
    parts = []
    best = next((row for row in rows if row.standing == "best"), None)
    level = [row.spec for row in rows if row.standing == "level with the best"]
    if alike:
        parts.append(
            "All seeds gave the same result: the script draws nothing from generators that can "
            "be seeded from outside, so no difference can be told from chance"
        )
    elif best is None:
        parts.append(_no_best(rows, seeds))
    elif level:
        parts.append(
            f"No winner: {listed([best.spec, *level])} are level, within the spread of the seeds"
        )
    else:
        parts.append(_winner(best, rows))
    broken = [f"{row.spec} ({row.diverged} of {len(row.outcomes)})" for row in rows if row.diverged]
    if broken:
        parts.append(f"Diverged or failed: {listed(broken)}")
    return ". ".join(parts) + "."


def _winner(best: Row, rows: Sequence[Row]) -> str:
    """What sets the best apart: its loss, or that others diverged more often."""
    others = {row.standing for row in rows if row is not best}
    if not others:
        return f"{best.spec} ends at {best.final_loss:.4g}; there is nothing to compare it with"
    if others == {"diverged"}:
        return f"{best.spec} wins, ending at {best.final_loss:.4g}: the others diverged more often"
    or_else = " or diverged" if "diverged" in others else ""
    apart = f"the others are worse by more than the seeds' spread{or_else}"
    return f"{best.spec} ends lowest, at {best.final_loss:.4g}; {apart}"


def _no_best(rows: Sequence[Row], seeds: int) -> str:
    if not any(math.isfinite(row.final_loss) for row in rows):
        return "No training ended with a loss that could be compared"
    return "One seed shows no spread, so no winner can be named: add --seeds 3"


def _row(row: Row) -> dict[str, object]:
    steps, low, middle, high = row.band()
    return {
        "spec": row.spec,
        "standing": row.standing,
        "final_loss": _finite(row.final_loss),
        "spread": _finite(row.spread),
        "diverged": row.diverged,
        **{
            key: _finite(row.mean(key))
            for key in ("clip_rate", "skip_rate", "unstable", "cosine", "seconds")
        },
        "seeds": [
            {
                "seed": o.seed,
                "trouble": o.trouble,
                "steps": o.steps,
                "final_loss": _finite(o.final_loss),
                "clip_rate": _finite(o.clip_rate),
                "skip_rate": _finite(o.skip_rate),
                "unstable": _finite(o.unstable),
                "cosine": _finite(o.cosine),
                "seconds": _finite(o.seconds),
            }
            for o in row.outcomes
        ],
        "curve": {
            "step": steps.tolist(),
            "low": [_finite(v) for v in low],
            "median": [_finite(v) for v in middle],
            "high": [_finite(v) for v in high],
        },
    }


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
