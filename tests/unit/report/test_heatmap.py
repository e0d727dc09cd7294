"""The heat map against the whole arrays, and its memory against the slices it reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from steadygrad.report.heatmap import MOST_COLUMNS, ROWS_AT_ONCE, heatmap
from steadygrad.runlog import Run, TensorInfo


def test_cells_hold_the_largest_finite_norm_and_every_broken_one(a_run: Callable[..., Run]) -> None:
    source = a_run(5003, tensors=5)
    norms, bad = source.tensor_norms, source.tensor_nonfinite
    norms[1234, 2], bad[1234, 2] = np.nan, 9
    norms[2000, 3] = np.inf
    norms[:, 4] = 0.0
    run = Run.from_arrays(
        steps=np.asarray(source.steps),
        tensors=source.tensors,
        tensor_norms=norms,
        tensor_nonfinite=bad,
    )
    made = heatmap(run)
    assert made is not None
    columns = len(made["steps"])
    edges = np.linspace(0, 5003, columns + 1).astype(int)
    assert columns == MOST_COLUMNS
    broken = {tuple(cell) for cell in made["broken"]}
    for c in range(columns):
        part, wrong = norms[edges[c] : edges[c + 1]], bad[edges[c] : edges[c + 1]]
        for t in range(5):
            finite = part[np.isfinite(part[:, t]), t]
            assert ((t, c) in broken) == bool((wrong[:, t] > 0).any() or np.isinf(part[:, t]).any())
            assert made["log10"][t][c] == (
                round(float(np.log10(finite.max())), 2) if finite.max() > 0 else None
            )
    assert len(broken) == 2
    assert made["zero"] == [[4, c] for c in range(columns)]


def test_rows_follow_the_forward_order_unknown_ones_last() -> None:
    places = {"last": -1, "third": 7, "first": 0, "second": 3}
    run = Run.from_arrays(
        steps={"norm": np.ones(4)},
        tensors=[TensorInfo(name, position=p) for name, p in places.items()],
        tensor_norms=np.ones((4, 4)),
    )
    made = heatmap(run)
    assert made is not None
    assert [t["name"] for t in made["tensors"]] == ["first", "second", "third", "last"]


def test_long_runs_are_read_in_slices(a_run: Callable[..., Run], monkeypatch: Any) -> None:
    run = a_run(30_000, tensors=3)
    read: list[int] = []
    original = Run.tensor_rows

    def spy(self: Run, rows: Any, *rest: Any, **named: Any) -> Any:
        read.append(rows.stop - rows.start)
        return original(self, rows, *rest, **named)

    monkeypatch.setattr(Run, "tensor_rows", spy)
    heatmap(run)
    assert max(read) <= ROWS_AT_ONCE + 30_000 // MOST_COLUMNS + 1
    assert sum(read) == 2 * 30_000


def test_a_run_without_tensor_figures_has_no_heat_map() -> None:
    assert heatmap(Run.from_arrays(steps={"norm": np.ones(9)}, tensors=["w"])) is None
    assert heatmap(Run.from_arrays(steps={"norm": np.ones(9)})) is None
    assert heatmap(Run.from_arrays(steps={"norm": []}, tensors=["w"])) is None
