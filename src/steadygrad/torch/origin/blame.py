"""From what a replay showed to the answer: the first call or backward function at fault."""

from __future__ import annotations

import linecache
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from steadygrad.live.shell import name_of_source
from steadygrad.runlog.origin import Origin, Range
from steadygrad.torch.origin.entries import OutsideTensor, TapeEntry, parts_of
from steadygrad.torch.origin.looks import Look
from steadygrad.torch.origin.places import Place, line_of
from steadygrad.torch.origin.probe import BrokenCall, Note
from steadygrad.torch.origin.replay import BackwardReplay, Story
from steadygrad.vocabulary import Phase

MOST_ROWS = 8
MOST_INPUTS = 4


@dataclass(frozen=True)
class Case:
    """The step in question.

    Attributes:
        step: its number.
        tensors: names of the gradients that were not finite.
        scaled: a GradScaler multiplies the loss.
    """

    step: int
    tensors: tuple[str, ...] = ()
    scaled: bool = False


def answer(case: Case, replay: BackwardReplay, story: Story) -> Origin | None:
    """Name the origin; None where the replay showed nothing non-finite.

    Args:
        case: the step.
        replay: that was run.
        story: what it showed.
    """
    batch = _batch_of(replay.entries)
    if story.forward is not None:
        return _of_forward(case, story, first_cause(story.forward), batch)
    if story.events:
        source = _forward_source(story.events[0])
        if source is not None:
            return _of_forward(case, story, source, batch)
        return _of_backward(case, story.events, batch)
    return None


def _forward_source(event: BrokenCall) -> Note | None:
    """What gave a backward function non-finite figures that a finite loss does not show.

    An infinite score, squashed by a tanh, comes back as NaN in the gradient of a product.
    """
    if event.made and event.note is not None and event.note.causes:
        return first_cause(event.note)
    return None


def first_cause(note: Note) -> Note:
    """The earliest call on the way back from a bad result whose inputs were all good."""
    seen: set[int] = set()
    waiting, first_causes = [note], []
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        waiting += one.causes
        if not one.causes:
            first_causes.append(one)
    return min(first_causes, key=lambda n: n.number)


def _of_forward(case: Case, story: Story, note: Note, batch: int) -> Origin:
    phase: Phase = note.outside or ("forward" if note.module[1] else "loss")
    if case.scaled and note is story.forward and _scales(note):
        phase = "scale"  # the finite loss, multiplied by its scale: the scaler's business
    inputs = _ranges(note.inputs)
    rows = _rows(note.result, batch)
    return _origin(case, note, phase, note.name, note.kind, inputs, rows, batch, _then(story, note))


def _of_backward(case: Case, events: Sequence[BrokenCall], batch: int) -> Origin:
    event = events[0]
    note = event.inner or event.note
    name = event.node if event.made else f"{event.node}, where finite gradients overflow in a sum,"
    if event.inner is not None:
        name = f"{event.node}: {event.inner.name}"
    noted = [] if note is None else note.inputs
    inputs = (*_ranges(noted), *_ranges(event.grads_in[:1]))
    later = next((e for e in events[1:] if e.kind == "nan"), None)
    then = ""
    if event.kind == "inf" and later is not None:
        then = f"inf came first, NaN followed in {later.node}"
    rows = _rows(event.result, batch)
    return _origin(case, note, "backward", name, event.kind, inputs, rows, batch, then)


def _scales(note: Note) -> bool:
    return note.kind == "inf" and note.name.endswith("mul") and len(note.inputs) == 2


def _origin(
    case: Case,
    note: Note | None,
    phase: Phase,
    operation: str,
    kind: str,
    inputs: tuple[Range, ...],
    rows: tuple[int, ...],
    batch: int,
    then: str,
) -> Origin:
    file, line, source = located(None if note is None else note.place)
    module = ("", "") if note is None else note.module
    return Origin(
        step=case.step,
        phase=phase,
        operation=operation,
        module=module[0],
        module_type=module[1],
        file=file,
        line=line,
        source=source,
        inputs=inputs,
        first_kind=kind,
        then=then,
        rows=rows[:MOST_ROWS],
        rows_total=len(rows),
        batch=batch,
        replayed=True,
        tensors=case.tensors,
    )


def located(place: Place | None) -> tuple[str, int, str]:
    """File, line and text of a place."""
    if place is None:
        return "", 0, ""
    file, line = line_of(place)
    return name_of_source(file), line, linecache.getline(file, line).strip()


def _then(story: Story, origin: Note) -> str:
    """Where an inf became NaN."""
    if origin.kind != "inf":
        return ""
    later = (n for n in story.notes if n.kind == "nan" and n.number > origin.number and n.causes)
    note = next(later, None)
    if note is None:
        event = next((event for event in story.events if event.kind == "nan"), None)
        return "" if event is None else f"inf came first, NaN followed in {event.node}"
    _, line, _ = located(note.place)
    return f"inf came first, NaN followed in {note.name} at line {line}"


def _ranges(looks: Sequence[Look]) -> tuple[Range, ...]:
    return tuple(look.range for look in looks[:MOST_INPUTS])


def _rows(look: Look | None, batch: int) -> tuple[int, ...]:
    shape = () if look is None else look.range.shape
    return look.rows if look is not None and shape and shape[0] == batch > 1 else ()


def _batch_of(entries: Sequence[TapeEntry]) -> int:
    """Rows of the batch: the first axis of the first tensor that entered; 0 where unknown."""
    modules = [entry for entry in entries if entry.kind == "module"]
    if any(map(_time_first, modules)):
        return 0
    for entry in modules or entries:
        for part in parts_of(entry):
            value = part.value if isinstance(part, OutsideTensor) else None
            if value is not None and value.dim() and not isinstance(value, torch.nn.Parameter):
                return int(value.shape[0])
    return next((int(t.shape[0]) for e in entries for t in _constants(e) if t.dim()), 0)


def _constants(entry: TapeEntry) -> list[Any]:
    return [outside.value for outside in entry.value] if entry.kind == "constant" else []


def _time_first(entry: TapeEntry) -> bool:
    """Whether a module reads sequences whose first axis is time, not the batch."""
    return any(getattr(module, "batch_first", True) is False for module in entry.func.modules())
