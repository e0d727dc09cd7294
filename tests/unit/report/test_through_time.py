"""The picture of the gradient through time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from steadygrad.report.through_time import through_time
from steadygrad.runlog import Event, Run
from steadygrad.vocabulary import THROUGH_TIME


def sample(step: int, length: int, norms: list[float]) -> Event:
    places = list(range(len(norms)))
    data: dict[str, Any] = {"tensor": 1, "length": length, "positions": places, "norms": norms}
    return Event(step, 0.0, THROUGH_TIME, data)


def test_positions_are_rows_and_sampled_steps_are_columns(a_run: Callable[..., Run]) -> None:
    events = (
        sample(0, 4, [0.0, 1e-2, 0.1, 1.0]),
        sample(1, 3, [1.0, 1.0, 1.0]),  # a shorter batch has rows of its own
        sample(4, 4, [1e-3, 1e-2, 0.1, 10.0]),
    )
    (made,) = through_time(a_run(40, spikes=(), events=events))
    assert (made["name"], made["length"], made["steps"]) == ("layer1.weight", 4, [0, 4])
    assert made["log10"] == [[None, -3.0], [-2.0, -2.0], [-1.0, -1.0], [0.0, 1.0]]
    assert made["zero"] == [[0, 0]]


def test_a_run_without_recurrence_has_none(a_run: Callable[..., Run]) -> None:
    assert through_time(a_run(40, spikes=())) == []
