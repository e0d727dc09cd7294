"""Finding: what a rule says, as frozen plain data, so that every reporter shows the same words."""

from __future__ import annotations

from dataclasses import dataclass, fields

from steadygrad.notebook.cards import Card, as_page

PAGES = "https://steadygrad.github.io/steadygrad/rules/"
"""Where the documentation has a page for each rule."""

SEVERITIES = ("error", "warning", "info")
"""Gravest first."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or worth knowing, about a run.

    Attributes:
        id: the rule, e.g. ``SG101``.
        title: one sentence that says what happened.
        severity: ``error``, ``warning`` or ``info``.
        confidence: how sure the rule is, 0 to 1.
        evidence: measured facts, one sentence each, with numbers and steps.
        steps: the optimizer steps to look at, ascending.
        tensors: names of the tensors to look at, the most telling first.
        causes: what may have led to it, the most likely first.
        fixes: code for this run's framework, the best first; comments say what it does.
        docs: address of the rule's page.
        optimizer: number of the optimizer within the run.
        figures: the same facts as numbers, for programs.

    Example:
        >>> f = Finding("SG101", "NaN at step 3.", "error", 0.9, steps=(3,))
        >>> f.docs
        'https://steadygrad.github.io/steadygrad/rules/SG101/'
        >>> f.explain
        'steadygrad explain SG101'
        >>> f.to_dict()["steps"]
        [3]
    """

    id: str
    title: str
    severity: str
    confidence: float
    evidence: tuple[str, ...] = ()
    steps: tuple[int, ...] = ()
    tensors: tuple[str, ...] = ()
    causes: tuple[str, ...] = ()
    fixes: tuple[str, ...] = ()
    docs: str = ""
    optimizer: int = 0
    figures: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        if self.severity not in SEVERITIES:
            raise ValueError(f"severity is one of {SEVERITIES}, got {self.severity!r}")
        if not self.docs:
            object.__setattr__(self, "docs", f"{PAGES}{self.id}/")

    @property
    def explain(self) -> str:
        """The command that prints the rule's page."""
        return f"steadygrad explain {self.id}"

    def to_dict(self) -> dict[str, object]:
        """The finding as JSON-ready data: lists for tuples, a dict for the figures."""
        data: dict[str, object] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            data[field.name] = list(value) if isinstance(value, tuple) else value
        data["figures"] = {name: finite_or_text(value) for name, value in self.figures}
        return data

    def _repr_html_(self) -> str:
        return self.card.as_html()

    @property
    def card(self) -> Card:
        """The finding as a notebook shows it: its sentence, its evidence, its first fix."""
        causes = (f"Likely cause: {self.causes[0]}.",) if self.causes else ()
        more = f"Confidence {self.confidence:.0%}. More: !{self.explain}"
        sentences = (*self.evidence, *causes, more)
        code = self.fixes[0] if self.fixes else ""
        title = f"{self.id} {self.severity}: {self.title}"
        return Card(title, self.severity, sentences=sentences, code=code)

    @property
    def gravity(self) -> tuple[int, float, int, str]:
        """Sort key: the gravest and surest first, then the earliest."""
        first = self.steps[0] if self.steps else 0
        return SEVERITIES.index(self.severity), -round(self.confidence, 6), first, self.id


def finite_or_text(value: float) -> float | str:
    """A number JSON can hold, or its name where it cannot.

    Example:
        >>> finite_or_text(1.5), finite_or_text(float("inf"))
        (1.5, 'inf')
    """
    number = float(value)
    return number if abs(number) < float("inf") else str(number)


class Findings(list[Finding]):
    """The findings of one run, the gravest first: a list that a notebook shows as cards.

    Example:
        >>> Findings([Finding("SG101", "NaN at step 3.", "error", 0.9)])
        SG101 error: NaN at step 3.
        >>> Findings()
        Nothing found.
    """

    def __repr__(self) -> str:
        lines = [f"{f.id} {f.severity}: {f.title}" for f in self]
        return "\n".join(lines) or "Nothing found."

    def _repr_html_(self) -> str:
        return as_page([f.card for f in self]) or Card("Nothing found.").as_html()
