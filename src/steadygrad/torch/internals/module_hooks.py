"""Hooks on every module, which stand as long as nothing is compiled.

`torch.compile` would trace them, and what it makes of a module warns of them at each call. So they
are not put up once it is in use, and go the moment it, or `torch.export`, takes a module.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
    register_module_module_registration_hook,
)
from torch.utils.hooks import RemovableHandle

from steadygrad.torch.internals.private import tracing_state

Before = Callable[[torch.nn.Module, object], None]
After = Callable[[torch.nn.Module, object, object], None]

_TAKEN = ("_orig_mod", "_export_root")
"""What a script's module is called in the one that `torch.compile` or `torch.export` puts it in,
before they trace anything: while they do, no hook may go."""


class ModuleHooks:
    """Calls functions around the forward pass of every module.

    Example:
        >>> seen, hooks = [], ModuleHooks()
        >>> hooks.put(lambda module, args: seen.append(type(module).__name__))
        >>> _ = torch.nn.ReLU()(torch.zeros(1))
        >>> hooks.remove(), seen
        (True, ['ReLU'])
    """

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []
        self._watching: RemovableHandle | None = None

    def put(self, before: Before, after: After | None = None) -> None:
        """Put hooks up, unless they stand already or `torch.compile` has been used.

        Args:
            before: called with the module and its arguments.
            after: called with the module, its arguments and what it returned.
        """
        if self._handles or _compiling():
            return
        self.remove()
        self._handles.append(register_module_forward_pre_hook(before))
        if after is not None:
            self._handles.append(register_module_forward_hook(after))
        self._watching = register_module_module_registration_hook(self._joined)

    def remove(self) -> bool:
        """Take the hooks off; False where they were off already."""
        stood = bool(self._handles)
        self._take_off()
        if self._watching is not None:
            self._watching.remove()
            self._watching = None
        return stood

    def _take_off(self) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _joined(self, module: torch.nn.Module, name: str, part: torch.nn.Module | None) -> None:
        """A module becomes part of another, such as the one that `torch.compile` makes."""
        if name in _TAKEN:
            self._take_off()  # but not this hook, which torch is at


def is_traced() -> bool:
    """Whether what a hook does now would become part of a graph."""
    return torch.compiler.is_dynamo_compiling() or tracing_state() is not None


def _compiling() -> bool:
    """Whether `torch.compile` has been used in this process."""
    frames = sys.modules.get("torch._dynamo.eval_frame")
    backends = getattr(frames, "cached_backends", None) or {}
    return any(backend is not None for backend in backends.values())
