"""IPython's shell, as far as it is used here; IPython itself is never imported."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Protocol


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
