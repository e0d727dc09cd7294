"""Steps that become records in the thread that writes, many at once."""

from __future__ import annotations

import math

import numpy as np
import pytest

from steadygrad.runlog.items import EventItem, StepItem, opened, rows_of
from steadygrad.runlog.records import StepRecord
from steadygrad.torch.gradients.outcome import PassedStep
from steadygrad.torch.record.sealed import MeasuredStep


def figures_of(norms: list[float], nonfinite: list[int], zeros: list[int]) -> bytearray:
    """As C leaves them."""
    counts = np.array([nonfinite, zeros], np.int64)
    total = np.array([np.linalg.norm(norms)])
    return bytearray(np.array([norms, norms]).tobytes() + counts.tobytes() + total.tobytes())


def test_a_record_of_values_is_the_one_that_a_call_makes() -> None:
    values = {"step": 3, "norm": 2.0, "loss": 0.5, "action": "clip", "loss_told": True}
    made = StepRecord.made_of(**values)
    assert repr(made) == repr(StepRecord(**values))  # its cosine may be NaN
    with pytest.raises(AttributeError):
        made.step = 4  # type: ignore[misc]


def test_steps_are_opened_together_in_their_order_whatever_tensors_they_have() -> None:
    ids = np.arange(2)
    steps = [
        (0, figures_of([3.0, 4.0], [0, 0], [1, 2]), PassedStep(), ids),
        (1, figures_of([1.0], [0], [7]), PassedStep(threshold=0.5, coef=0.5), ids[:1]),
        (2, figures_of([math.inf, 4.0], [5, 6], [0, 0]), PassedStep(), ids),
        (3, figures_of([], [], []), PassedStep(), ids[:0]),
        (4, figures_of([6.0, 8.0], [0, 0], [0, 9]), PassedStep(), ids),
    ]
    sealed = [
        MeasuredStep((number, 10.0 + number, 0.25, True, 1e-3, 0, which, figures, passed))
        for number, figures, passed, which in steps
    ]
    event = EventItem("alert", {}, 2, 0.0)
    items = opened([*sealed[:2], event, *sealed[2:]])
    assert items.pop(2) is event
    assert [item.record.norm for item in items] == [5.0, 1.0, math.inf, 0.0, 10.0]
    assert [item.record.nonfinite for item in items] == [0, 0, 11, 0, 0]
    assert [item.record.action for item in items] == ["none", "clip", "none", "none", "none"]
    assert [item.record.threshold for item in items] == [math.inf, 0.5, *3 * [math.inf]]
    assert [item.zeros.tolist() for item in items] == [[1, 2], [7], [0, 0], [], [0, 9]]
    assert [item.norms.tolist() for item in items[:2]] == [[3.0, 4.0], [1.0]]
    for item, one in zip(items, sealed, strict=True):
        alone = one.opened()
        assert isinstance(alone, StepItem)
        assert repr(alone.record) == repr(item.record)
        assert all(map(np.array_equal, alone[2:], item[2:]))
    beside, expected = MeasuredStep.rows_together(sealed), rows_of(items)
    np.testing.assert_array_equal(beside.table, expected.table)
    assert [each.places for each in beside.figures] == [[0, 2, 4], [1]]
    for one, other in zip(beside.figures, expected.figures, strict=True):
        assert all(map(np.array_equal, one, other))
