"""The live card: one a cell, drawn seldom, and never at the training's cost."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from steadygrad.live import card as live
from steadygrad.live import session
from steadygrad.live.card import CardFigures, LiveCard
from steadygrad.notebook.cards import MOST_POINTS
from steadygrad.report.headline import Verdict
from steadygrad.runlog import RunWriter, StepRecord, open_run

VERDICT = Verdict("ok", "Steady", "Steady over all of it.")


class Page:
    """A notebook's page that keeps what it was sent."""

    def __init__(self, raises: bool = False) -> None:
        self.sent: list[tuple[str, bool, str]] = []
        self.raises = raises
        self.shell: Any = SimpleNamespace(execution_count=1, display_pub=self)

    def publish(self, data: dict[str, str], *, transient: dict[str, str], update: bool) -> None:
        self.sent.append((transient["display_id"], update, data["text/plain"]))
        if self.raises:
            raise RuntimeError("the page is gone")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "EVERY_SECONDS", 0.01)
    monkeypatch.setattr(live, "REST", 0.0)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert condition()


def train(writer: RunWriter, first: int, last: int, norm: float = 1.0) -> None:
    for step in range(first, last):
        writer.write_step(StepRecord(step, norm=norm), [], [], [], [], [])
    writer.flush()


def test_every_cell_that_trains_has_a_card_of_its_own(tmp_path: Path) -> None:
    page = Page()
    with RunWriter(tmp_path / "run.db") as writer:
        card = LiveCard(page.shell)
        writer.add_sink(card)
        train(writer, 0, 5)
        wait_for(lambda: len(page.sent) == 1)
        train(writer, 5, 9)
        wait_for(lambda: len(page.sent) == 2)
        card.cell_ends("", lambda: VERDICT)
        card.cell_begins()
        card.cell_ends("", lambda: VERDICT)  # a cell that trains nothing shows nothing
        page.shell.execution_count = 3
        card.cell_begins()
        train(writer, 9, 12)
        wait_for(lambda: len(page.sent) == 4)
    first = page.sent[0][0]
    assert [update for _, update, _ in page.sent] == [False, True, True, False]
    assert [name for name, _, _ in page.sent[:3]] == [first] * 3
    assert page.sent[3][0] != first
    assert page.sent[0][2].startswith("Training: run.db\n  steps 5, last norm 1")
    assert page.sent[2][2].splitlines()[0] == "Trained: run.db"
    assert VERDICT.sentence in page.sent[2][2]


def test_a_cell_whose_run_cannot_be_judged_is_not_left_training(tmp_path: Path) -> None:
    page = Page()
    with RunWriter(tmp_path / "run.db") as writer:
        card = LiveCard(page.shell)
        writer.add_sink(card)
        train(writer, 0, 5)
        wait_for(lambda: len(page.sent) == 1)
        card.cell_ends("", lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    assert page.sent[-1][2].splitlines()[0] == "Trained: run.db"
    assert "No verdict could be made of the run (ZeroDivisionError)." in page.sent[-1][2]


def test_a_page_that_fails_ends_the_card_alone(tmp_path: Path) -> None:
    page = Page(raises=True)
    with RunWriter(tmp_path / "run.db") as writer:
        card = LiveCard(page.shell)
        writer.add_sink(card)
        train(writer, 0, 5)
        wait_for(lambda: len(page.sent) == 1)
        train(writer, 5, 10)
        card.cell_ends("KeyboardInterrupt", lambda: 1 / 0)  # type: ignore[arg-type, return-value]
        card.cell_begins()
        train(writer, 10, 15)
    assert len(page.sent) <= 2
    assert len(open_run(tmp_path / "run.db")) == 15


def test_it_is_drawn_as_seldom_as_it_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """0.25 % of a core at most: the pause is 400 times what a drawing took."""
    pauses: list[float] = []
    card = LiveCard(Page().shell)
    clock = iter([0.0, 0.002, 1.0, 1.03])
    monkeypatch.setattr(live, "time", SimpleNamespace(thread_time=lambda: next(clock)))
    monkeypatch.setattr(live, "EVERY_SECONDS", 1.0)
    monkeypatch.setattr(live, "REST", 400.0)

    def wait(seconds: float) -> bool:
        pauses.append(seconds)
        return len(pauses) == 3

    monkeypatch.setattr(card, "_stop", SimpleNamespace(wait=wait, set=list))
    card._run()
    assert pauses == pytest.approx([1.0, 1.0, 12.0])


def test_memory_is_bounded_and_no_spike_is_lost() -> None:
    figures = CardFigures()
    norms = [1.0] * 20_000
    norms[14_321], norms[17_777] = 1e6, math.nan
    figures.add([StepRecord(step, norm=norm) for step, norm in enumerate(norms)])
    figures.add([StepRecord(0, norm=9.0, optimizer=1)])
    card = figures.as_card("Training")
    assert len(card.curve) < 2 * MOST_POINTS
    assert max(v for v in card.curve if math.isfinite(v)) == 1e6
    assert sum(map(math.isnan, card.curve)) == 1
    assert figures.steps == 20_000
    assert card.sentences == ("The first NaN or inf came at step 17777.",)


def test_without_a_notebook_nothing_is_added(tmp_path: Path) -> None:
    with session.open_writer(tmp_path / "run.db") as writer:
        assert writer not in session._cards
        assert writer not in session._open
