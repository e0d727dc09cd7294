"""Where a NaN or inf came from: plain data, shared by who finds it, who writes it and who reads it.

The finder lives with PyTorch; rules, reports and `steadygrad run` read the event
``nan_origin`` of a run file through `Origin.from_json`, without any framework.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from steadygrad.text import place
from steadygrad.vocabulary import Phase


@dataclass(frozen=True)
class Range:
    """What one tensor that entered the operation held.

    Attributes:
        name: what it was to the operation: ``input 0``, or its parameter's name.
        shape: its shape.
        dtype: such as ``float32``.
        low: smallest finite element; NaN where there is none.
        high: largest finite element.
        nonfinite: number of NaN and inf elements.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    low: float
    high: float
    nonfinite: int = 0

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Range:
        """The range that `Origin.as_json` wrote."""
        return cls(
            str(data["name"]),
            tuple(map(int, data["shape"])),
            str(data["dtype"]),
            float(data["low"]),
            float(data["high"]),
            int(data.get("nonfinite", 0)),
        )

    def __str__(self) -> str:
        shape = "x".join(map(str, self.shape)) or "scalar"
        span = f"{self.low:.4g} to {self.high:.4g}" if self.low == self.low else "nothing finite"
        bad = f", {self.nonfinite} non-finite" if self.nonfinite else ""
        return f"{self.name} ({self.dtype}, {shape}) from {span}{bad}"


@dataclass(frozen=True)
class Origin:
    """Where the first non-finite value of a step was made.

    Attributes:
        step: number of the optimizer's step.
        phase: the part of the step.
        operation: the function, or the backward function; empty where not found.
        module: path of the module that ran it; empty outside modules.
        module_type: that module's class.
        file: source file of the line that called it.
        line: its number, from 1; 0 where unknown.
        source: the text of that line.
        inputs: what entered the operation.
        first_kind: ``inf`` or ``nan``, whichever it made first.
        then: where an inf became NaN later on, as a phrase; empty otherwise.
        rows: rows of the batch in which it arose, at most 8; empty where one cannot tell.
        rows_total: how many rows it arose in.
        batch: rows of the batch; 0 where unknown.
        replayed: whether the step was replayed and the replay showed the origin.
        why_not: why there is no replay, or what it could not show.
        tensors: the gradients that were not finite, at most 8.
    """

    step: int
    phase: Phase
    operation: str = ""
    module: str = ""
    module_type: str = ""
    file: str = ""
    line: int = 0
    source: str = ""
    inputs: tuple[Range, ...] = ()
    first_kind: str = ""
    then: str = ""
    rows: tuple[int, ...] = ()
    rows_total: int = 0
    batch: int = 0
    replayed: bool = False
    why_not: str = ""
    tensors: tuple[str, ...] = ()

    def as_json(self) -> dict[str, object]:
        """A JSON object; NaN and inf become strings, since JSON has neither."""
        fields = dataclasses.asdict(self)
        for entry in fields["inputs"]:
            entry["low"], entry["high"] = _plain(entry["low"]), _plain(entry["high"])
        return fields

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Origin:
        """The origin that `as_json` made; fields of a later version are left out.

        Raises:
            TypeError, ValueError, KeyError: a field that is needed is missing, or of another type.

        Example:
            >>> origin = Origin(3, "loss", "log", file="train.py", line=12, first_kind="inf")
            >>> Origin.from_json(origin.as_json()) == origin
            True
        """
        words = {f.name for f in dataclasses.fields(cls) if f.type in ("str", "Phase")}
        numbers = {f.name for f in dataclasses.fields(cls) if f.type == "int"}
        fields: dict[str, Any] = {key: str(data[key]) for key in words & data.keys()}
        fields |= {key: int(data[key]) for key in numbers & data.keys()}
        return cls(
            inputs=tuple(map(Range.from_json, data.get("inputs", ()))),
            rows=tuple(map(int, data.get("rows", ()))),
            tensors=tuple(map(str, data.get("tensors", ()))),
            replayed=bool(data.get("replayed", False)),
            **fields,
        )

    @property
    def place(self) -> str:
        """File and line, as editors read them; empty where unknown."""
        return place(_shown(self.file), self.line) if self.line else ""

    def sentences(self) -> list[str]:
        """What was found, the answer first."""
        said = [self._answer(), self._inputs(), self._rows(), self._limits()]
        return [sentence for sentence in said if sentence]

    def __str__(self) -> str:
        return " ".join(self.sentences())

    def _answer(self) -> str:
        if not self.replayed:
            listed = ", ".join(self.tensors) or "the loss"
            return f"Step {self.step} turned non-finite in {listed}."
        kind = {"nan": "NaN", "inf": "inf"}.get(self.first_kind, "non-finite value")
        source = f": {self.source}" if self.source else ""
        where = f" at {self.place}{source}" if self.place else ""
        made = f"{self._made()}{self._inside()}{where}{self._then()}"
        return f"The first {kind} of step {self.step} {made}."

    def _inside(self) -> str:
        if not self.module_type:
            return ""
        return (
            f" in {self.module} ({self.module_type})" if self.module else f" in {self.module_type}"
        )

    def _made(self) -> str:
        if self.phase == "input":
            return f"came with the data ({self.operation})"
        if self.phase == "weights":
            return f"stood in {self.operation} before the step"
        if self.phase == "backward":
            return f"was made in the backward pass by {self.operation}, whose forward ran"
        return f"was made by {self.operation}"

    def _then(self) -> str:
        return f"; {self.then}" if self.then else ""

    def _inputs(self) -> str:
        return "It was given " + "; ".join(map(str, self.inputs)) + "." if self.inputs else ""

    def _rows(self) -> str:
        if not self.rows:
            return ""
        if self.batch > 1 and self.rows_total == self.batch:
            return f"All {self.batch} rows of the batch show it."
        listed = ", ".join(map(str, self.rows))
        more = f" and {self.rows_total - len(self.rows)} more" if self.rows_total > 8 else ""
        plural = "s" if self.rows_total > 1 else ""
        return f"Row{plural} {listed}{more} of the batch's {self.batch} cause it."

    def _limits(self) -> str:
        if not self.why_not:
            return ""
        start = "" if self.replayed else "The operation is not known: "
        return f"{start}{self.why_not}."


def _plain(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _shown(file: str) -> str:
    """The file, relative to where one stands if it lies below."""
    try:
        relative = os.path.relpath(file)
    except (ValueError, OSError):
        return file
    return file if relative.startswith("..") else relative
