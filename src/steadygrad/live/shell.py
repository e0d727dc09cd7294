"""IPython's shell, as far as it is used here; IPython itself is never imported."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any, Protocol

_NUMBERED = re.compile(r"<ipython-input-(\d+)-")
"""How IPython 7 names the code of a cell."""


class Events(Protocol):
    """What tells when a cell begins and ends."""

    def register(self, event: str, function: Callable[..., None]) -> None:
        """Call a function at an event."""


class Publisher(Protocol):
    """What sends outputs to the page."""

    def publish(
        self, data: dict[str, str], *, transient: dict[str, str], update: bool = False
    ) -> None:
        """Show data, or replace what was shown under the same ``display_id``."""


class Shell(Protocol):
    """What runs cells."""

    execution_count: int
    events: Events
    display_pub: Publisher
    user_ns: dict[str, Any]
    compile: Any


def shell_of_ipython() -> Shell | None:
    """The shell that runs this code; None outside IPython."""
    ipython = sys.modules.get("IPython")
    shell: Shell | None = None if ipython is None else ipython.get_ipython()
    return shell


def shell_of_a_notebook() -> Shell | None:
    """The shell of a kernel, whose outputs may be replaced; None in a terminal."""
    shell = shell_of_ipython()
    return shell if getattr(shell, "kernel", None) is not None else None


def name_of_source(file: str) -> str:
    """What a user calls the file that code was compiled from.

    Args:
        file: as a code object has it; for a notebook's cell that is a temporary path.

    Returns:
        ``Cell In[3]`` for a cell, else the file.

    Example:
        >>> name_of_source("train.py")
        'train.py'
    """
    shell = shell_of_ipython()
    name = getattr(getattr(shell, "compile", None), "format_code_name", lambda file: None)(file)
    if name is not None:
        return " ".join(name)
    numbered = _NUMBERED.match(file)
    return file if numbered is None else f"Cell In[{numbered[1]}]"
