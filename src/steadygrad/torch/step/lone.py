"""Optimizers inside the one attached to that step by themselves: then nothing here ever acts."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from torch.utils.hooks import RemovableHandle

from steadygrad.torch.gradients.parameters import parameters_of
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
    name, what = type(outer).__name__, _to_attach_to(outer, inner)
    return (
        f"the {type(inner).__name__} inside this {name} has stepped and the {name}'s own "
        "step() was not called, so nothing is clipped or recorded. Type steadygrad.torch."
        f"attach({what}, ...), without attaching to the {name}"
    )


def sentence_on_made(outer: torch.optim.Optimizer, with_closure: bool) -> str:
    """What to say of an optimizer that makes gradients in its own step."""
    name, inner = type(outer).__name__, inner_optimizers(outer)
    to_do = "Let the closure call backward()" if with_closure else "Give step() a closure that does"
    sentence = (
        f"this {name} makes its gradients inside its own step(), so none can be clipped, skipped "
        f"or recorded before it. {to_do}, where it can"
    )
    if not inner:
        return sentence
    what = _to_attach_to(outer, *inner)
    return (
        f"{sentence}, or type steadygrad.torch.attach({what}, ...), without attaching to the {name}"
    )


def sentence_on_replaced(outer: torch.optim.Optimizer, inner: torch.optim.Optimizer) -> str:
    """What to say where an inner optimizer steps on other gradients than those acted on."""
    name, what = type(outer).__name__, _to_attach_to(outer, inner)
    return (
        f"this {name} puts other gradients in the place of those that were clipped before the "
        f"{type(inner).__name__} inside it steps (with differential privacy they are made of each "
        f"sample's): to clip what is applied, type steadygrad.torch.attach({what}, ...), without "
        f"attaching to the {name}"
    )


def sentence_on_beside(outer: torch.optim.Optimizer, inner: torch.optim.Optimizer) -> str:
    """What to say of an inner optimizer that moves weights which the outer one does not hold."""
    name, count = type(outer).__name__, len(parameters_of(inner))
    return (
        f"the {type(inner).__name__} inside this {name} moves {count} parameters that are not in "
        f"the {name}'s own param_groups, so they are neither clipped nor recorded with the others. "
        f"Type steadygrad.torch.attach({_to_attach_to(outer, inner)}, ...), too"
    )


def without_gradients(optimizer: torch.optim.Optimizer, step: int) -> str:
    """What to say of a step at which no parameter has a gradient."""
    return (
        f"step {step}: no parameter of this {type(optimizer).__name__} has a gradient, so nothing "
        "is clipped: call loss.backward() before optimizer.step(), and zero_grad() after it"
    )


def _to_attach_to(outer: torch.optim.Optimizer, *inner: torch.optim.Optimizer) -> str:
    held_as = [f"optimizer.{key}" for key, value in vars(outer).items() if value is inner[0]]
    return held_as[0] if held_as and len(inner) == 1 else "each of the optimizers inside"
