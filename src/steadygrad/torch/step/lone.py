"""Optimizers inside the one attached to that step by themselves: then nothing here ever acts."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from torch.utils.hooks import RemovableHandle

from steadygrad.torch.step.copies import UncopiedHook
from steadygrad.torch.step.inner import inner_optimizers, is_stand_in


def watch_inner(
    optimizer: torch.optim.Optimizer, stepped: Callable[[torch.optim.Optimizer], None]
) -> list[RemovableHandle]:
    """Be told of each step of an optimizer inside of another.

    Args:
        optimizer: the outer one.
        stepped: a bound method, held weakly; given the inner one after its step.

    Returns:
        Hooks, to be removed.
    """
    method = weakref.WeakMethod(stepped)

    def after(inner: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        tell = method()
        if tell is not None and not is_stand_in(inner):
            tell(inner)

    hook = UncopiedHook(after)
    return [each.register_step_post_hook(hook) for each in inner_optimizers(optimizer)]


def sentence_on(outer: torch.optim.Optimizer, inner: torch.optim.Optimizer) -> str:
    """What to say of an inner optimizer that has stepped while the outer one has not."""
    name = type(outer).__name__
    held_as = next((f".{k}" for k, v in vars(outer).items() if v is inner), None)
    what = "each of the optimizers inside" if held_as is None else f"optimizer{held_as}"
    return (
        f"the {type(inner).__name__} inside this {name} has stepped and the {name}'s own "
        "step() was not called, so nothing is clipped or recorded. Type steadygrad.torch."
        f"attach({what}, ...), without attaching to the {name}"
    )
