"""The origin of a NaN, as the head of its finding's card: the line, and what is known of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from steadygrad.report.model import FindingData, OriginData
from steadygrad.report.numbers import plain
from steadygrad.runlog.origin import Origin
from steadygrad.vocabulary import NAN_ORIGIN

if TYPE_CHECKING:
    from steadygrad.rules import Finding
    from steadygrad.runlog import Run

_WHEN = {
    "forward": "in the forward pass",
    "loss": "outside modules, on the way to the loss",
    "backward": "in the backward pass",
}


def with_origins(findings: Iterable[Finding], run: Run) -> list[FindingData]:
    """Findings, each with the ``origin`` that its evidence tells of; None for most.

    Args:
        findings: what the rules say.
        run: the run that they are of.

    Returns:
        The same findings as JSON objects.
    """
    origins = [Origin.from_json(event.data) for event in run.events if event.kind == NAN_ORIGIN]
    shown = [origin for origin in origins if origin.replayed]
    return [_shown(finding, shown) for finding in findings]


def _shown(finding: Finding, origins: list[Origin]) -> FindingData:
    data: FindingData = plain(finding.to_dict())
    data["origin"] = _card(finding, origins)
    return data


def _card(finding: Finding, origins: list[Origin]) -> OriginData | None:
    for origin in origins:
        sentences = origin.sentences()
        if sentences[0] in finding.evidence:
            said = {"place": origin.place, "source": origin.source, "told": sentences}
            return plain({**said, "facts": list(_facts(origin))})  # type: ignore[no-any-return]
    return None


def _facts(origin: Origin) -> Iterable[tuple[str, str]]:
    kind = {"nan": "NaN", "inf": "inf"}.get(origin.first_kind, "non-finite")
    if origin.phase in _WHEN:
        yield "made by", f"{origin.operation}, {_WHEN[origin.phase]}"
    else:
        what = "came with the data" if origin.phase == "input" else "stood there before the step"
        yield "made by", f"{origin.operation}: no operation, it {what}"
    if origin.module_type:
        yield "module", f"{origin.module or 'the outermost'} ({origin.module_type})"
    yield "first", f"{kind} at step {origin.step}" + (f"; {origin.then}" if origin.then else "")
    for number, input_range in enumerate(origin.inputs):
        yield "" if number else "given", str(input_range)
    if origin.rows:
        more = f" and {origin.rows_total - len(origin.rows)} more" if origin.rows_total > 8 else ""
        every = origin.rows_total == origin.batch
        rows = "all" if every else ", ".join(map(str, origin.rows)) + more
        yield "rows", f"{rows} of the batch's {origin.batch}"
