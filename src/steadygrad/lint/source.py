"""Sources: Python files and notebooks as text that parses, with the way back to their places.

A notebook's code cells are read as one program, as they would run from top to bottom. Lines
that only IPython understands become comments of the same length, so that columns stay true.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

from steadygrad.errors import UsageError
from steadygrad.lint.diagnostic import Diagnostic

_NOQA = re.compile(r"#\s*noqa(?P<codes>:\s*[A-Z]+[0-9]+(?:[,\s]+[A-Z]+[0-9]+)*)?", re.IGNORECASE)
_MAGIC = re.compile(r"^(\s*)([%!?].*)$")

LARGEST = 4_000_000
"""Files above this many bytes are no scripts that people wrote."""


@dataclass(frozen=True)
class NotebookCell:
    """One code cell of a notebook.

    Attributes:
        number: its place among all cells, from 1, as notebooks count when they are read.
        index: its place in the file's list of cells.
        first: line of the joined text at which it starts, from 1.
        lines: how many lines it has.
    """

    number: int
    index: int
    first: int
    lines: int


@dataclass(frozen=True)
class SourceFile:
    """One file, ready to be parsed.

    Attributes:
        path: the file, as it was named.
        text: Python text.
        cells: the code cells of a notebook; empty for a plain file.
    """

    path: str
    text: str
    cells: tuple[NotebookCell, ...] = ()

    def placed(self, diagnostic: Diagnostic) -> Diagnostic:
        """A diagnostic with this file's path, and with its cell in a notebook."""
        for cell in self.cells:
            if cell.first <= diagnostic.line < cell.first + cell.lines:
                shift = cell.first - 1
                return replace(
                    diagnostic,
                    path=self.path,
                    cell=cell.number,
                    line=diagnostic.line - shift,
                    end_line=diagnostic.end_line - shift,
                )
        return replace(diagnostic, path=self.path)


def read(path: Path) -> SourceFile:
    """Read a Python file or a notebook.

    Args:
        path: the file.

    Returns:
        The source.

    Raises:
        UsageError: it cannot be read, or is no text; the message says why.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise UsageError(f"{path} is larger than {LARGEST:,} bytes: it is left out")
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    if path.suffix == ".ipynb":
        return _notebook(str(path), text)
    return SourceFile(str(path), text)


def _notebook(path: str, text: str) -> SourceFile:
    try:
        cells = json.loads(text)["cells"]
        kinds = [(cell["cell_type"], "".join(cell["source"])) for cell in cells]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(f"{path} is no notebook: {error}") from error
    lines: list[str] = []
    placed: list[NotebookCell] = []
    for index, (kind, code) in enumerate(kinds):
        if kind == "code" and not code.lstrip().startswith("%%"):
            inside = [_plain(line) for line in code.split("\n")]
            placed.append(NotebookCell(index + 1, index, len(lines) + 1, len(inside)))
            lines += inside
    return SourceFile(path, "\n".join(lines) + "\n", tuple(placed))


def _plain(line: str) -> str:
    """A line with IPython's own syntax made a statement that does nothing."""
    magic = _MAGIC.match(line)
    return f"{magic[1]}pass  # {magic[2]}" if magic else line


def silenced(lines: list[str], diagnostic: Diagnostic) -> bool:
    """Whether a ``# noqa`` on the diagnostic's first or last line silences it.

    Args:
        lines: the lines of the text.
        diagnostic: with lines of that text.

    Returns:
        True for a bare ``# noqa`` and for one that names the id.

    Example:
        >>> from steadygrad.lint.diagnostic import Severity
        >>> d = Diagnostic("SG404", Severity.ERROR, "", 1, 1, 1, 2)
        >>> silenced(["clip()  # noqa: SG404"], d), silenced(["clip()  # noqa: E501"], d)
        (True, False)
    """
    for number in {diagnostic.line, diagnostic.end_line}:
        comment = _NOQA.search(lines[number - 1]) if number <= len(lines) else None
        if comment:
            codes = comment["codes"]
            if codes is None or diagnostic.id in re.findall(r"[A-Z]+[0-9]+", codes.upper()):
                return True
    return False


def rewritten(source: SourceFile, text: str, original: str) -> str:
    """The file's new content after a fix.

    Args:
        source: the source that was read.
        text: its text after the fix, as long in lines for a notebook's other cells.
        original: the file's content.

    Returns:
        The content to write: the text itself, or the notebook with the one changed cell.
    """
    if not source.cells:
        return text
    data = json.loads(original)
    before, after = source.text.split("\n"), text.split("\n")
    grown = len(after) - len(before)
    for cell in source.cells:
        start, end = cell.first - 1, cell.first - 1 + cell.lines
        if before[:start] == after[:start] and before[end:] == after[end + grown :]:
            old = "".join(data["cells"][cell.index]["source"]).split("\n")
            new = _with_magic(old, after[start : end + grown])
            data["cells"][cell.index]["source"] = [f"{line}\n" for line in new[:-1]] + new[-1:]
            return json.dumps(data, indent=1, ensure_ascii=False) + "\n"
    return original


def _with_magic(old: list[str], new: list[str]) -> list[str]:
    """New lines, with IPython's own as they were."""
    magic = {_plain(line): line for line in old if _MAGIC.match(line)}
    return [magic.get(line, line) for line in new]
