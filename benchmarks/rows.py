"""Rows of the result, as CSV and as a table for people."""

from __future__ import annotations

import csv
import datetime
import os
import platform
from dataclasses import asdict, dataclass, fields
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


def rows_of(
    threads: int, name: str, case: str, contenders: list[Contender], seconds: list[float]
) -> list[Row]:
    """One row a contender; ratios are against the first. Goals are for one thread."""
    return [
        Row(
            threads,
            name,
            case,
            contender.name,
            round(s * 1e3, 4),
            round(s / seconds[0], 3),
            "" if contender.target is None or threads > 1 else str(contender.target),
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


def described(rows: list[Row]) -> list[dict[str, object]]:
    """Rows, each with machine, versions and date."""
    facts = machine()
    return [{**asdict(row), **facts} for row in rows]


def read_csv(path: Path) -> list[dict[str, object]]:
    """Rows that were kept; none where there is no file yet."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def merged(kept: list[dict[str, object]], new: list[dict[str, object]]) -> list[dict[str, object]]:
    """Kept rows without those of cases measured anew, which follow; sorted by threads."""

    def case_of(row: dict[str, object]) -> tuple[str, ...]:
        return str(row["threads"]), str(row["set"]), str(row["case"])

    again = set(map(case_of, new))
    rows = [row for row in kept if case_of(row) not in again] + new
    return sorted(rows, key=lambda row: int(str(row["threads"])))


def write_csv(rows: list[dict[str, object]], path: Path) -> None:
    """All rows, each with machine, versions and date."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


COLUMNS = {field.name for field in fields(Row)}


def table(rows: list[dict[str, object]]) -> str:
    """Markdown: what the figures depend on, then a table; a target that was missed is marked."""
    facts = dict.fromkeys(
        ", ".join(f"{k} {v}" for k, v in row.items() if k not in COLUMNS) for row in rows
    )
    head = "| threads | set | case | | ms | ratio | to reach |\n|-|-|-|-|-:|-:|-:|"
    return "\n\n".join([*facts, "\n".join([head, *map(_line, rows)])])


def _line(row: dict[str, object]) -> str:
    ms, ratio, target = float(str(row["ms"])), float(str(row["ratio"])), str(row["target"])
    short = " (short)" if target and ratio > float(target) else ""
    cells = (row["threads"], row["set"], row["case"], row["contender"])
    return f"| {' | '.join(map(str, cells))} | {ms:.3f} | {ratio:.3f} | {target}{short} |"
