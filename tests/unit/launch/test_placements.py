"""The clip calls of a traced step, by the number that its rows of figures carry."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from steadygrad.launch.placements import Placement, PlacementTable
from steadygrad.launch.plan import Plan
from steadygrad.launch.session import Session
from steadygrad.launch.track import BATCH, CALL, MOST_CALLS, STEPS, WAITS, Track, Tracks
from steadygrad.runlog import TensorInfo, open_run
from steadygrad.vocabulary import FIGURES, SCRIPT_CLIP


def placement(max_norm: float, late: bool = False) -> Placement:
    return Placement("clip_by_global_norm", 1, 1, 1, max_norm=max_norm, late=late)


def test_equal_calls_share_a_number_and_a_trace_has_its_own() -> None:
    table = PlacementTable()
    one, other = placement(1.0), placement(2.0)
    assert table.enter(()) == -1
    assert list(table.at(-1)) == []
    assert table.enter([one]) == table.enter([one])
    assert table.enter([other]) != table.enter([one])
    traced = table.enter([one], traced=True)
    assert traced != table.enter([one])
    late = placement(3.0, late=True)
    table.add_late(traced, late)
    assert list(table.at(traced)) == [one, late]
    assert table.is_behind(traced, late)
    assert not table.is_behind(traced, one)
    table.add_late(-1, late)  # outside traced code: told with the step that follows
    following = table.enter([one])
    assert list(table.at(following)) == [one, late]
    assert not table.is_behind(following, late)


def test_an_optimizer_that_accumulates_clips_once(tmp_path: Path) -> None:
    session = Session(Plan("script.py", out=str(tmp_path / "run.db")))
    tracks = Tracks(session)
    track = tracks.add("SGD", [TensorInfo("w", (2,))], [object()], lambda: None, {}, Track)
    own = Placement("global_clipnorm", 1, 1, 1, own=True, max_norm=1.0)
    head = {"loss": 0.5, "lr": 0.1, "loss_scale": 1.0, "place": track.placements.enter([own])}
    rest = np.full(MOST_CALLS * len(CALL), math.nan)
    for kind in (WAITS, WAITS, STEPS) * 2:
        figures = [4.0, 1.0, 0.25, 1.0, 1.0, *np.ones(len(FIGURES))]
        track.push([*({**head, "kind": kind}[name] for name in BATCH), *rest, *figures])
    tracks.finish()
    session._conclude()
    run = open_run(tmp_path / "run.db")
    calls = [e.data for e in run.events if e.kind == SCRIPT_CLIP]
    assert [(call["step"], call["norm"], call["coef"]) for call in calls] == [
        (0, 4.0, 0.25),
        (1, 4.0, 0.25),
    ]
    assert [(call["backward_since_step"], call["repeated"]) for call in calls] == [(3, 0)] * 2
    (counted,) = run.info["clip_calls"]
    assert (counted["count"], counted["per_micro_batch"], counted["repeated"]) == (2, False, False)


def test_a_call_behind_a_traced_step_is_told_with_the_next(tmp_path: Path) -> None:
    session = Session(Plan("script.py", out=str(tmp_path / "run.db")))
    tracks = Tracks(session)
    track = tracks.add("SGD", [TensorInfo("w", (2,))], [object()], lambda: None, {}, Track)
    number = track.placements.enter([placement(1.0)], traced=True)
    track.placements.add_late(number, placement(2.0, late=True))
    head = {"loss": 0.5, "lr": 0.1, "loss_scale": 1.0, "kind": STEPS, "place": number}
    calls = np.full((MOST_CALLS, len(CALL)), math.nan)
    calls[0] = 1.0, 4.0, 0.25
    for _ in range(2):
        step = [4.0, math.inf, 1.0, 1.0, 0.0]
        figures = np.ones(len(FIGURES))
        track.push([*(head[name] for name in BATCH), *calls.ravel(), *step, *figures])
    tracks.finish()
    session._conclude()
    run = open_run(tmp_path / "run.db")
    assert run.steps.norm.tolist() == [4.0, 4.0]
    events = [(e.step, e.data["max_norm"]) for e in run.events if e.kind == SCRIPT_CLIP]
    assert sorted(events) == [(0, 1.0), (1, 1.0), (1, 2.0), (2, 2.0)]
