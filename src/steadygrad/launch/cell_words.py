"""What is said of an observed cell: cards for the page, and the same words as text."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from steadygrad.launch.verdict import MOST_FINDINGS, nothing_seen, of_thinning, own_cost, threshold
from steadygrad.notebook.cards import Card, as_page
from steadygrad.report.headline import verdict
from steadygrad.rules import diagnose
from steadygrad.runlog import open_run
from steadygrad.runlog.thinning import thinned

if TYPE_CHECKING:
    from steadygrad.launch.contracts import EndedRun
    from steadygrad.runlog import Run


@dataclass(frozen=True)
class Words:
    """What is shown below a cell.

    Attributes:
        page: as HTML.
        text: the same where no page is drawn.
    """

    page: str
    text: str


def words_of(session: EndedRun) -> Words:
    """The verdict on a cell that is over, its findings, a threshold, and what to type next.

    Args:
        session: the cell's, its run file closed.
    """
    cards = _cards(session)
    return Words(as_page(cards), "\n".join(card.as_text() for card in cards))


def _cards(session: EndedRun) -> list[Card]:
    troubles = tuple(f"Mind: {what}" for what in session.troubles)
    if not os.path.exists(session.path):
        return [Card(nothing_seen(session), "warning", sentences=troubles)]
    whole = open_run(session.path)
    run = thinned(whole)
    findings = diagnose(run)
    judgement = verdict(run, findings)
    cards = [_summary(whole, judgement.level, judgement.sentence)]
    cards += [finding.card for finding in findings[:MOST_FINDINGS]]
    name = os.path.basename(session.path)
    closing = [
        " ".join(line.strip() for line in threshold(run, session)),
        of_thinning(run, whole),
        own_cost(run, session),
        *troubles,
    ]
    code = f'run = steadygrad.open_run("{name}")\n!steadygrad report {name}'
    title = f"{session.plan.cell} was observed"
    return [*cards, Card(title, "info", sentences=tuple(filter(None, closing)), code=code)]


def _summary(run: Run, level: str, sentence: str) -> Card:
    card = run.card
    limit = float(run.steps.threshold[-1]) if len(run) else None
    return Card(sentence, level, card.figures, card.curve, limit)
