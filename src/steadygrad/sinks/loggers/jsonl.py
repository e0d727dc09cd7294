"""JSON Lines: one object a step, strict JSON.

JSON has no NaN and no infinity, and parsers outside Python refuse them, so they are
written as the strings "NaN", "Infinity" and "-Infinity".
"""

from __future__ import annotations

import json
import math
from pathlib import Path

from steadygrad.runlog import STEP_DTYPE
from steadygrad.runlog.items import Head
from steadygrad.sinks.base import Batch, Sink, tensor_figures
from steadygrad.sinks.files import create


class JsonLines(Sink):
    """A ``.jsonl`` file; with tensors, each step holds an object ``tensors`` by name."""

    kind = "jsonl"
    suffix = ".jsonl"
    default_tensors = 0

    def open(self, head: Head) -> None:
        """Create the file."""
        self._file = create(Path(self.target or "steps.jsonl"), text=True)

    def write(self, batch: Batch) -> None:
        """A line a step."""
        for row, step in enumerate(batch.steps):
            values = {name: _plain(step[name]) for name in STEP_DTYPE.names or ()}
            if self.wants_tensors(int(step["step"])):
                values["tensors"] = {
                    name: {figure: strict(value) for figure, value in figures.items()}
                    for name, figures in tensor_figures(batch, row)
                }
            self._file.write(json.dumps(values, allow_nan=False, ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _plain(value: object) -> object:
    plain = value.item() if hasattr(value, "item") else value
    return strict(plain) if isinstance(plain, float) else plain


def strict(value: float) -> float | str:
    """A float as strict JSON can hold it.

    Example:
        >>> strict(0.5), strict(float("-inf"))
        (0.5, '-Infinity')
    """
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


SINK = JsonLines
