"""Run cases, compare answers with what is accepted, and put the table together."""

from __future__ import annotations

import gc
import json
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cases import Case
from keras_training import run_keras_case
from others import OTHERS
from training import Trace, run_case

import steadygrad


@dataclass(frozen=True)
class Verdict:
    """What was said of one case.

    Attributes:
        case: the case.
        ids: ids found, the gravest first; those of severity info have a trailing ``?``.
        others: for each other detector, whether it raised an alarm, and whether one was right.
    """

    case: Case
    ids: tuple[str, ...]
    others: dict[str, tuple[bool, bool]]

    @property
    def detected(self) -> bool:
        """Whether an accepted id is among the answers."""
        return any(i.rstrip("?") in self.case.accepted for i in self.ids)

    @property
    def first(self) -> bool:
        """Whether the first answer is an accepted one."""
        return bool(self.ids) and self.ids[0].rstrip("?") in self.case.accepted

    @property
    def alarmed(self) -> bool:
        """Whether an error or a warning was raised."""
        return any(not i.endswith("?") for i in self.ids)

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "held_out": self.case.held_out}


def judge(case: Case, keep: Path | None = None) -> Verdict:
    """Train one case and diagnose its run file; one that is kept already is not trained again.

    Args:
        case: what to train.
        keep: folder for run files and traces; a temporary one where None.

    Returns:
        What was said.
    """
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NaN statistics of broken runs, in the restated rules
        path = (keep or Path(folder)) / f"{case}.db"
        trace = _recorded(case, path)
        run = steadygrad.open_run(path)
        found = steadygrad.diagnose(run)
        others = {}
        for name, rules in OTHERS.items():
            alarms = rules(trace, run)
            right = any(alarm & set(case.accepted) for alarm in alarms)
            others[name] = (bool(alarms), right)
    ids = tuple(f.id + "?" * (f.severity == "info") for f in found)
    return Verdict(case, ids, others)


def _recorded(case: Case, path: Path) -> Trace:
    """The trace beside a run file, both made where the trace is not there yet."""
    beside = path.with_suffix(".json")
    if beside.exists():
        return Trace(**json.loads(beside.read_text()))
    path.unlink(missing_ok=True)
    run = run_keras_case if case.in_keras else run_case
    gc.freeze()  # the observer looks through all objects for the model: it is a new one
    try:
        trace = run(case.architecture, case.seed, case.setup(), path)
    finally:
        gc.unfreeze()
    beside.write_text(json.dumps(asdict(trace)))
    return trace


def share(flags: Iterable[bool]) -> str:
    """A share with its counts.

    Example:
        >>> share([True, False])
        '1/2 (50.0 %)'
    """
    values = list(flags)
    return f"{sum(values)}/{len(values)} ({100 * np.mean(values):.1f} %)" if values else "-"


def table(verdicts: list[Verdict]) -> str:
    """The summary in Markdown: held-out part, tuning part, and the other detectors."""
    parts = {
        "held out": [v for v in verdicts if v.case.held_out],
        "tuned on": [v for v in verdicts if not v.case.held_out],
    }
    lines = [
        "| detector | part | faults detected | accepted id first | false alarms |",
        "|---|---|---|---|---|",
    ]
    for part, some in parts.items():
        broken = [v for v in some if v.case.accepted]
        sound = [v for v in some if not v.case.accepted]
        lines.append(
            f"| **steadygrad** | {part} | {share(v.detected for v in broken)} | "
            f"{share(v.first for v in broken)} | {share(v.alarmed for v in sound)} |"
        )
    for name in OTHERS:
        broken = [v for v in parts["held out"] if v.case.accepted]
        sound = [v for v in parts["held out"] if not v.case.accepted]
        lines.append(
            f"| {name}, restated | held out | {share(v.others[name][0] for v in broken)} "
            f"(any alarm) | {share(v.others[name][1] for v in broken)} (right family) | "
            f"{share(v.others[name][0] for v in sound)} |"
        )
    return "\n".join(lines)


def confusion(verdicts: list[Verdict]) -> str:
    """One row a fault: what was said first, and how often."""
    lines = [
        "| fault | accepted | cases | detected | first | first answers |",
        "|---|---|---|---|---|---|",
    ]
    names = dict.fromkeys(v.case.name for v in verdicts if v.case.accepted)
    for name in names:
        some = [v for v in verdicts if v.case.name == name and v.case.accepted]
        said = Counter(v.ids[0] if v.ids else "nothing" for v in some)
        answers = ", ".join(f"{i} {n}" for i, n in said.most_common())
        lines.append(
            f"| {name} | {' '.join(some[0].case.accepted)} | {len(some)} | "
            f"{sum(v.detected for v in some)} | {sum(v.first for v in some)} | {answers} |"
        )
    for name in dict.fromkeys(v.case.name for v in verdicts if not v.case.accepted):
        some = [v for v in verdicts if v.case.name == name and not v.case.accepted]
        said = Counter(i for v in some for i in v.ids)
        answers = ", ".join(f"{i} {n}" for i, n in said.most_common()) or "nothing"
        lines.append(f"| healthy: {name} | | {len(some)} | | | {answers} |")
    return "\n".join(lines)


def wrong(verdicts: list[Verdict]) -> list[str]:
    """Cases that were missed, answered second, or accused falsely."""
    odd = [v for v in verdicts if (not v.first if v.case.accepted else v.alarmed)]
    return [f"{v.case}: accepted {v.case.accepted or 'nothing'}, said {v.ids}" for v in odd]
