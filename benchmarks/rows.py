"""Rows of the result, as CSV and as a table for people."""

from __future__ import annotations

import csv
import datetime
import os
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from benchmarks.timing import Contender


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        threads: of every library.
        set: what was worked on.
        case: what was asked for.
        contender: who did it.
        ms: the least time.
        ratio: against the first contender of the case.
        target: the ratio to reach, or "".
    """

    threads: int
    set: str
    case: str
    contender: str
    ms: float
    ratio: float
    target: str = ""

    @property
    def short(self) -> bool:
        """Whether a target was missed."""
        return self.target != "" and self.ratio > float(self.target)


def rows_of(
    threads: int, name: str, case: str, contenders: list[Contender], seconds: list[float]
) -> list[Row]:
    """One row a contender; ratios are against the first."""
    return [
        Row(
            threads,
            name,
            case,
            contender.name,
            round(s * 1e3, 4),
            round(s / seconds[0], 3),
            "" if contender.target is None else str(contender.target),
        )
        for contender, s in zip(contenders, seconds, strict=True)
    ]


def machine() -> dict[str, str]:
    """What the figures depend on."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].split(":")[1].strip() if lines else model
    libraries = ("torch", "numpy", "optax", "jax", "tensorflow")
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "processor": model,
        "cores": str(os.cpu_count()),
        "python": platform.python_version(),
        **{name: version(name) for name in libraries},
    }


def write_csv(rows: Iterable[Row], path: Path) -> None:
    """All rows, each with machine, versions and date."""
    facts = machine()
    lines = [{**asdict(row), **facts} for row in rows]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)


def table(rows: list[Row]) -> str:
    """A Markdown table; a target that was missed is marked."""
    head = "| threads | set | case | | ms | ratio | to reach |\n|-|-|-|-|-:|-:|-:|"
    lines = [
        f"| {r.threads} | {r.set} | {r.case} | {r.contender} | {r.ms:.3f} | {r.ratio:.3f} | "
        f"{r.target}{' (short)' if r.short else ''} |"
        for r in rows
    ]
    return "\n".join([head, *lines])
