"""What `steadygrad report` does with what was typed."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from steadygrad.errors import UsageError
from steadygrad.report.files import write_report
from steadygrad.report.summary import build
from steadygrad.text import printable


def report(runs: Sequence[str], *, out: str, terminal: bool, as_json: bool, force: bool) -> None:
    """Show or write a report; what is asked for goes to standard output.

    Args:
        runs: paths of run files.
        out: the HTML file to write.
        terminal: show the report in the terminal instead.
        as_json: print the JSON instead.
        force: replace files that are already there.

    Raises:
        UsageError: both ``terminal`` and ``as_json``, or a file that is already there.
        RunFileError: a path is no run file.
    """
    if terminal and as_json:
        raise UsageError("--terminal and --json both write to standard output: type one of them")
    if as_json:
        print(json.dumps(build(runs), allow_nan=False))
    elif terminal:
        from rich.console import Console

        from steadygrad.report.terminal import view

        Console(file=sys.stdout, highlight=False).print(view(build(runs)))
    else:
        print(printable(str(write_report(runs, out, force=force))))
