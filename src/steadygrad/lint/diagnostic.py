"""Diagnostic: what a check says of one place in a source, as frozen plain data."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Severity(str, Enum):
    """How grave a diagnostic is; the gravest first."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"

    @property
    def rank(self) -> int:
        """0 for the gravest."""
        return list(Severity).index(self)


@dataclass(frozen=True)
class Edit:
    """One replacement in a source.

    Attributes:
        start: offset of the first character that goes, in characters from the file's start.
        end: offset behind the last one; equal to ``start`` for an insertion.
        text: what stands there afterwards.
    """

    start: int
    end: int
    text: str


@dataclass(frozen=True)
class Fix:
    """How a fault is mended in the source.

    Attributes:
        says: what is done, in the imperative.
        edits: replacements that do not overlap; all are made, or none.
    """

    says: str
    edits: tuple[Edit, ...]


@dataclass(frozen=True)
class Diagnostic:
    """One fault, or one thing worth knowing, at one place.

    Attributes:
        id: the check's id, e.g. ``SG404``; the run-time rule of that id sees the same fault.
        severity: how grave it is.
        message: one sentence: what is wrong there.
        line: line, from 1.
        column: column, from 1.
        end_line: line of the end.
        end_column: column behind the end, from 1.
        fix: how to mend it, where that can be done by rule.
        path: the file, as it was named; empty until a file is linted.
        cell: number of the notebook's cell, from 1; 0 in a plain file. Lines count from the
            cell's start.

    Example:
        >>> Diagnostic("SG404", Severity.ERROR, "Clipped early.", 3, 5, 3, 9).severity.rank
        0
    """

    id: str
    severity: Severity
    message: str
    line: int
    column: int
    end_line: int
    end_column: int
    fix: Fix | None = None
    path: str = ""
    cell: int = 0

    @property
    def where(self) -> str:
        """The place, as editors and terminals link it.

        Example:
            >>> Diagnostic("SG404", Severity.ERROR, "", 3, 5, 3, 9, path="train.py").where
            'train.py:3:5'
        """
        cell = f":cell {self.cell}" if self.cell else ""
        return f"{self.path}{cell}:{self.line}:{self.column}"

    def to_dict(self) -> dict[str, str | int | bool]:
        """The diagnostic as JSON-ready data."""
        return {
            "id": self.id,
            "severity": self.severity.value,
            "message": self.message,
            "path": self.path,
            "cell": self.cell,
            "line": self.line,
            "column": self.column,
            "end_line": self.end_line,
            "end_column": self.end_column,
            "fixable": self.fix is not None,
            "fix": self.fix.says if self.fix else "",
        }
