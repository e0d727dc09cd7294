"""The compiled parts: whether each is there, and whether it was built from these sources.

They may be missing (a pure wheel) or left over from other sources (an editable install that
was updated and not built again). Plain torch and plain XLA then
serve: the same figures, more slowly. Whoever looks at `advice` says so.
"""

from __future__ import annotations

import functools
import importlib
import importlib.machinery
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

from steadygrad import fingerprint

READ = "steadygrad.kernels._read"
XLA = "steadygrad.jax._xla"
PACKAGE = Path(__file__).parent
REBUILD = "pip install --force-reinstall --no-deps --no-cache-dir --no-binary=steadygrad steadygrad"
"""Builds it here: where there is no wheel but the pure one, pip would take that again."""


def load(name: str) -> ModuleType | None:
    """Import an extension, if it was built from the sources that lie here.

    Args:
        name: `READ` or `XLA`.

    Returns:
        The module; None where it is missing or was built from other sources.

    Example:
        >>> load("steadygrad.no_such_extension") is None
        True
    """
    try:
        module = importlib.import_module(name)
    except ImportError:
        return None
    return module if _is_current(module) else None


@functools.cache
def state(name: str) -> str:
    """Look at an extension without importing the framework that it is for.

    Args:
        name: `READ` or `XLA`.

    Returns:
        ``"built"``, ``"missing"`` or ``"stale"``.

    Example:
        >>> state("steadygrad.no_such_extension")
        'missing'
    """
    folder = PACKAGE.joinpath(*name.split(".")[1:-1])
    stem = name.rpartition(".")[2]
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = folder / f"{stem}{suffix}"
        if os.path.exists(path):  # Path.exists raises where this user may not look
            return _state_of(name, path)
    return "missing"


def _state_of(name: str, path: Path) -> str:
    loader = importlib.machinery.ExtensionFileLoader(name, str(path))
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert spec is not None
    try:
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
    except ImportError:  # built for another machine
        return "missing"
    return "built" if _is_current(module) else "stale"


def _is_current(module: ModuleType) -> bool:
    try:
        sources = fingerprint.of_sources(PACKAGE)
    except OSError:  # they were taken out of this install
        return True
    return getattr(module, "BUILT_FROM", None) == sources


def install_state() -> str:
    """The worst state of the two extensions: ``"built"``, ``"stale"`` or ``"missing"``."""
    states = {state(READ), state(XLA)}
    return next(worst for worst in ("missing", "stale", "built") if worst in states)


def advice(state_of_install: str) -> str:
    """One sentence that says what is wrong with the compiled parts and what to type.

    Args:
        state_of_install: as `install_state` gives it.

    Returns:
        The sentence; empty where nothing is wrong.

    Example:
        >>> print(advice("stale"))
        Measuring on the CPU is slower than it need be: the C kernel was built from other sources
        than those that lie here. In their folder, with a C compiler on the PATH, type:
        pip install -e .
        >>> advice("built")
        ''
    """
    if state_of_install == "stale":
        reason = (
            "the C kernel was built from other sources\n"
            "than those that lie here. In their folder, with a C compiler on the PATH, type:\n"
            "pip install -e ."
        )
    elif state_of_install == "missing" and sys.platform == "win32":
        reason = "the C kernel is not made for Windows."
    elif state_of_install == "missing":
        reason = f"the C kernel was not built here. With a C\ncompiler on the PATH type:\n{REBUILD}"
    else:
        return ""
    return f"Measuring on the CPU is slower than it need be: {reason}"
