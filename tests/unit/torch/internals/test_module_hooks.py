"""Hooks on every module keep out of the way of what takes a model apart."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import steadygrad.torch as sg
from steadygrad.torch.internals.module_hooks import ModuleHooks

INPUTS = torch.ones(2, 4)


@pytest.fixture
def model() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))


@pytest.fixture(autouse=True)
def nothing_is_compiled() -> Iterator[None]:
    yield
    torch._dynamo.reset()


def traced(model: torch.nn.Module) -> object:
    graph = torch.jit.trace(model, INPUTS).inlined_graph  # type: ignore[no-untyped-call]
    return [node.kind() for node in graph.nodes()]


def exported(model: torch.nn.Module) -> object:
    return [node.name for node in torch.export.export(model, (INPUTS,), strict=True).graph.nodes]


def compiled(model: torch.nn.Module) -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return torch.compile(model, backend="eager")(INPUTS).shape


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("take", [traced, exported, compiled])
def test_a_model_is_taken_as_if_it_were_not_observed(
    model: torch.nn.Module, take: Callable[[torch.nn.Module], object], tmp_path: Path
) -> None:
    plainly = take(model)
    torch._dynamo.reset()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with sg.attach(optimizer, clip="none", model=model, run=tmp_path / "run.db"):
        assert take(model) == plainly
        model(INPUTS).sum().backward()
        optimizer.step()


def test_no_hook_is_put_up_once_a_module_is_compiled(model: torch.nn.Module) -> None:
    hooks, seen = ModuleHooks(), []
    hooks.put(lambda module, args: seen.append(type(module)))
    taken = torch.compile(model, backend="eager")
    assert not hooks.remove()
    hooks.put(lambda module, args: seen.append(type(module)))
    model(INPUTS)
    assert not hooks.remove()
    assert not seen
    del taken
