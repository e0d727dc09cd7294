"""What ranks tell each other arrives whole, however quick the steps, and does not pile up."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch._C._distributed_c10d import HashStore, PrefixStore, Store, TCPStore

from steadygrad.torch.distributed import board
from steadygrad.torch.distributed.board import SEGMENT, Board, RankRow, disagreement

STEPS = 1500


STORES: dict[str, Callable[[], Store]] = {
    "in memory": HashStore,
    "TCP": lambda: TCPStore("127.0.0.1", 0, 1, True),
}


@pytest.mark.parametrize("kind", STORES)
def test_all_rows_arrive_and_those_that_were_read_are_deleted(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Rank 0 looks before the other rank's message comes, and no clock ever makes it due."""
    monkeypatch.setattr(board, "SECONDS", float("inf"))
    store = STORES[kind]()
    boards = [Board(PrefixStore("p", store), rank, 2, "a") for rank in (0, 1)]
    rows: list[tuple[int, int]] = []
    most = before = store.num_keys()
    for step in range(STEPS):
        for one in boards:
            one.tell(RankRow(one.rank, step, 1.0, 1.0, 1.0, 0, 0.1, 0.1, True))
            if one.due(step) or step == STEPS - 1:
                one.send()
            if one.due(step) and not one.rank:
                rows += [(row.rank, row.step) for row in one.arrived()]
                most = max(most, store.num_keys())
    rows += [(row.rank, row.step) for row in boards[0].arrived()]
    assert sorted(rows) == [(rank, step) for rank in (0, 1) for step in range(STEPS)]
    assert most - before <= 3 < STEPS // SEGMENT
    assert not boards[0].lost


def test_an_optimizer_that_steps_inside_backward_is_told_so() -> None:
    rows = [RankRow(rank, 0, 1.0 + rank, 1.0, 0.0, 0, 0.1, 0.1, True) for rank in (0, 1)]
    assert "Average gradients over the ranks" in disagreement(rows)
    assert "call step() after backward()" in disagreement(rows, in_backward=True)
