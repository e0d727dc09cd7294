"""What loggers there are, by the files of their folder: `--help` names them and loads none."""

from __future__ import annotations

import os
import pkgutil


def formats() -> list[str]:
    """The names of the loggers, to which a finished run can be exported; loads none of them.

    Example:
        >>> "csv" in formats(), "alerts" in formats()
        (True, False)
    """
    folder = os.path.join(os.path.dirname(__file__), "loggers")
    return sorted(module.name for module in pkgutil.iter_modules([folder]))
