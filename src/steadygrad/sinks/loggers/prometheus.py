"""Prometheus text: the latest figures in one small file, for node_exporter's textfile collector.

A file instead of a port: a training opens no socket, and a scrape never reaches it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from steadygrad.runlog.items import Head
from steadygrad.sinks.scalars import TENSOR_NAMES, ScalarSink

if TYPE_CHECKING:
    from collections.abc import Sequence


class Prometheus(ScalarSink):
    """A ``.prom`` file that always holds the latest step, replaced whole."""

    kind = "prometheus"
    suffix = ".prom"
    default_tensors = 1

    def open(self, head: Head) -> None:
        """Check that the folder can be written."""
        self._path = Path(self.target or "steadygrad.prom")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._latest: dict[str, float] = {}
        self._save()

    def scalars(self, values: dict[str, float], step: int, time: float) -> None:
        """Keep the latest value of every name."""
        self._latest |= values | {"step": float(step)}

    def take(self, items: Sequence[object]) -> None:
        """Handle a batch, then write the file once for all of it."""
        super().take(items)
        if items:
            self._save()

    def close(self) -> None:
        """Leave the last figures in the file."""
        self._save()

    def _save(self) -> None:
        temporary = self._path.with_name(self._path.name + ".part")
        temporary.write_text(exposition(self._latest), encoding="utf-8")
        os.replace(temporary, self._path)  # a scrape never sees half a file


def exposition(values: dict[str, float]) -> str:
    """Named numbers in Prometheus' text format.

    Example:
        >>> print(exposition({"grad_norm/total": 2.0, "grad_norm/fc.weight": float("nan")}), end="")
        # TYPE steadygrad_grad_norm gauge
        steadygrad_grad_norm{tensor="fc.weight"} NaN
        # TYPE steadygrad_grad_norm_total gauge
        steadygrad_grad_norm_total 2.0
    """
    families: dict[str, list[str]] = {}
    for name, value in values.items():
        family, labels = _family(name)
        families.setdefault(family, []).append(f"{family}{labels} {_number(value)}\n")
    lines = [
        f"# TYPE {family} gauge\n" + "".join(rows) for family, rows in sorted(families.items())
    ]
    return "".join(lines)


def _family(name: str) -> tuple[str, str]:
    first, _, rest = name.partition("/")
    if rest and first in TENSOR_NAMES.values() and not _is_total(rest):
        return f"steadygrad_{first}", f'{{tensor="{_escaped(rest)}"}}'
    plain, _, optimizer = name.partition("/optimizer_")
    labels = f'{{optimizer="{optimizer}"}}' if optimizer else ""
    return "steadygrad_" + "".join(c if c.isalnum() else "_" for c in plain), labels


def _is_total(rest: str) -> bool:
    return rest == "total" or rest.startswith("total/optimizer_")


def _escaped(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return {"nan": "NaN", "inf": "+Inf", "-inf": "-Inf"}.get(repr(value), repr(value))


SINK = Prometheus
