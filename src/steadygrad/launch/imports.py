"""Call a function when the script has imported a library.

A finder at the head of `sys.meta_path` looks the library up as Python would
have, and wraps `exec_module` of that one loader instance: the loader, the spec
and the module stay of the types that the library and its tools expect.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from steadygrad.launch.undoing import note

Callback = Callable[[ModuleType], None]


class Watcher:
    """A meta path finder that finds nothing itself; see `watch`."""

    def __init__(self) -> None:
        self.callbacks: dict[str, Callback] = {}

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec that the other finders give, its loader wrapped where `name` is watched."""
        callback = self.callbacks.get(name)
        if callback is None:
            return None
        spec = _find(self, name, path, target)
        if spec is not None and hasattr(spec.loader, "exec_module"):
            _wrap(spec.loader, callback)
        return spec


def watch(callbacks: dict[str, Callback]) -> Watcher:
    """Call ``callbacks[name](module)`` once each named module has been executed.

    A module that is loaded already is reported at once.

    Args:
        callbacks: one function a module name; it must not raise.

    Returns:
        The finder that was put on `sys.meta_path`.

    Example:
        >>> import sys
        >>> seen = []
        >>> watcher = watch({"colorsys": lambda module: seen.append(module.__name__)})
        >>> _ = sys.modules.pop("colorsys", None)
        >>> import colorsys
        >>> sys.meta_path.remove(watcher)
        >>> seen
        ['colorsys']
    """
    watcher = Watcher()
    for name, callback in callbacks.items():
        if name in sys.modules:
            callback(sys.modules[name])
        else:
            watcher.callbacks[name] = callback
    sys.meta_path.insert(0, watcher)
    note(partial(_unwatch, watcher))
    return watcher


def _unwatch(watcher: Watcher) -> None:
    if watcher in sys.meta_path:
        sys.meta_path.remove(watcher)


def _find(
    watcher: Watcher, name: str, path: Sequence[str] | None, target: ModuleType | None
) -> ModuleSpec | None:
    # those before it have been asked; asking them again would go round in circles with a second one
    behind = sys.meta_path[sys.meta_path.index(watcher) + 1 :] if watcher in sys.meta_path else []
    for finder in behind:
        find_spec = getattr(finder, "find_spec", None)
        if find_spec is not None:
            spec: ModuleSpec | None = find_spec(name, path, target)
            if spec is not None:
                return spec
    return None


def _wrap(loader: Any, callback: Callback) -> None:
    original = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        original(module)
        loader.__dict__.pop("exec_module", None)  # a reload is not a second import
        callback(module)

    try:
        loader.exec_module = exec_module
    except (AttributeError, TypeError):
        return  # a loader class or one with slots: the library is imported unobserved
