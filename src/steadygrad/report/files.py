"""Writing a report: two files side by side, and never over someone's work unasked."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from steadygrad.errors import UsageError
from steadygrad.report.summary import build

if TYPE_CHECKING:
    from steadygrad.runlog import Run


def write_report(
    runs: Sequence[Run | str | os.PathLike[str]],
    out: str | os.PathLike[str] = "report.html",
    *,
    force: bool = False,
    title: str = "",
    notes: Sequence[str] = (),
) -> Path:
    """Write one HTML report about one run or several, and its JSON twin beside it.

    Args:
        runs: open runs or paths of run files; two or more are also compared.
        out: the HTML file; the twin has the same name, ending in ``.json``.
        force: replace files that are already there.
        title: what stands at the top; by default the script's or the file's name.
        notes: sentences shown under the verdict.

    Returns:
        The absolute path of the HTML file.

    Raises:
        UsageError: a file is already there, or the folder is not.
        RunFileError: a path is no run file.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from steadygrad.runlog import Run
        >>> run = Run.from_arrays(steps={"norm": np.linspace(1.0, 2.0, 50)})
        >>> write_report([run], tempfile.mkdtemp() + "/report.html").name
        'report.html'
    """
    from steadygrad.report.page import render

    page = Path(out).absolute()
    if page.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"the report is an HTML file, got {out}: type -o {page.stem}.html")
    twin = page.with_suffix(".json")
    _refuse_overwriting(page, twin, force=force)
    report = build(runs, title=title, notes=notes)
    _write(twin, json.dumps(report, allow_nan=False, separators=(",", ":")) + "\n")
    _write(page, render(report))
    return page


def _refuse_overwriting(*paths: Path, force: bool) -> None:
    if not paths[0].parent.is_dir():
        raise UsageError(
            f"there is no folder {paths[0].parent}: make it first, or choose another -o"
        )
    there = [path for path in paths if path.exists()]
    if there and not force:
        raise UsageError(
            f"{there[0]} is already there: type --force to replace it, or -o NAME.html"
        )


def _write(path: Path, text: str) -> None:
    """Whole or not at all: a report that is being read is never half replaced."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
