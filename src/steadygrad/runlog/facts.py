"""What a run file says about the run without being told, and what it never says.

No environment variable is read. A command line may carry a token, so the values of
arguments that are named like a secret are blotted out before they are written.
"""

from __future__ import annotations

import platform
import re
import sys
import time
from collections.abc import Sequence
from typing import Any

from steadygrad import extensions
from steadygrad._version import __version__

BLOT = "***"
_SECRET = re.compile(r"token|secret|passw|api[-_]?key|credential|\bkey\b|auth\b", re.IGNORECASE)
_URL_USER = re.compile(r"(\w+://)[^/\s@]+@")


def basic_facts() -> dict[str, Any]:
    """The facts that hold for every run: versions, platform, command line, start, kernel."""
    return {
        "steadygrad": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "command": list(sys.argv),
        "started": time.time(),
        "kernel": extensions.install_state(),
    }


def versions_of(*packages: str) -> dict[str, str]:
    """Versions of packages, of those that are imported.

    Example:
        >>> import numpy
        >>> versions_of("numpy", "no_such_package") == {"numpy": numpy.__version__}
        True
    """
    return {name: str(sys.modules[name].__version__) for name in packages if name in sys.modules}


def without_secrets(command: Sequence[Any]) -> list[str]:
    """Blot out what looks like a secret in a command line.

    Example:
        >>> without_secrets(["train.py", "--lr=0.1", "--api-key", "abc", "--hf-token=xyz"])
        ['train.py', '--lr=0.1', '--api-key', '***', '--hf-token=***']
    """
    clean: list[str] = []
    blot_next = False
    for argument in map(str, command):
        name, equals, _ = argument.partition("=")
        secret = bool(_SECRET.search(name)) and (argument.startswith("-") or bool(equals))
        if blot_next and not argument.startswith("-"):
            clean.append(BLOT)
        elif secret and equals:
            clean.append(f"{name}={BLOT}")
        else:
            clean.append(_URL_USER.sub(rf"\1{BLOT}@", argument))
        blot_next = secret and not equals
    return clean
