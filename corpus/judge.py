"""Run a case, and compare what was said with what is accepted."""

from __future__ import annotations

import functools
import gc
import json
import tempfile
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

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
        scores: of a healthy run, what falls as its task is learned: untrained, and at the end.
    """

    case: Case
    ids: tuple[str, ...]
    others: dict[str, tuple[bool, bool]]
    scores: tuple[float, ...] = ()

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

    @property
    def idle(self) -> bool:
        """Whether a run that is called healthy learns nothing: then it is none."""
        return bool(self.scores) and not self.scores[1] < self.scores[0]

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
        if not len(run.steps):
            raise RuntimeError(f"nothing was recorded of {case}: its verdict would be a sham")
        found = steadygrad.diagnose(run)
        others = {}
        for name, rules in OTHERS.items():
            alarms = rules(trace, run)
            right = any(alarm & set(case.accepted) for alarm in alarms)
            others[name] = (bool(alarms), right)
    ids = tuple(f.id + "?" * (f.severity == "info") for f in found)
    scores = () if case.accepted else tuple(trace.scores)
    return Verdict(case, ids, others, scores)


def _recorded(case: Case, path: Path) -> Trace:
    """The trace beside a run file, both made where the trace is not there yet."""
    beside = path.with_suffix(".json")
    if beside.exists():
        return Trace(**json.loads(beside.read_text()))
    path.unlink(missing_ok=True)
    run = run_keras_case if case.in_keras else functools.partial(run_case, scored=not case.accepted)
    gc.freeze()  # the observer looks through all objects for the model: it is a new one
    try:
        trace = run(case.architecture, case.seed, case.setup(), path)
    finally:
        gc.unfreeze()
    beside.write_text(json.dumps(asdict(trace)))
    return trace
