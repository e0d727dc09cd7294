"""Calls laid into torch's functions: told exactly, and invisible to whoever looks."""

from __future__ import annotations

import inspect
import pickle
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.amp.grad_scaler import GradScaler

from steadygrad.torch.internals import sites
from steadygrad.torch.internals.inlay import Visit, inlay
from steadygrad.torch.internals.sites import Site

ALL = {
    "backward": sites.BACKWARD,
    "clip_grad_norm_": sites.CLIP_NORM,
    "clip_grads_with_norm_": sites.CLIP_WITH_NORM,
    "clip_grad_value_": sites.CLIP_VALUE,
    "scale": sites.SCALE,
    "unscale_": sites.UNSCALE,
    "step": sites.SCALER_STEP,
}


class Told(Visit):
    """Writes down what becomes of a call."""

    def __init__(self, arguments: tuple[Any, ...], told: list[Any]) -> None:
        super().__init__(arguments)
        self._told = told

    def returns(self, result: Any) -> Any:
        self._told.append(("returns", type(result).__name__))
        return result

    def ends(self) -> None:
        self._told.append("ends")


@pytest.fixture
def told() -> Iterator[list[Any]]:
    """Listens at every site for one test."""
    calls: list[Any] = []

    def listener(name: str) -> Callable[[tuple[Any, ...]], Visit]:
        def begins(arguments: tuple[Any, ...]) -> Visit:
            calls.append(name)
            return Told(arguments, calls)

        return begins

    undo = [site.listen(listener(name)) for name, site in ALL.items() if site.exists]
    yield calls
    assert all(each() for each in undo)


def weight() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.ones(3))


def functions() -> list[Any]:
    utils = torch.nn.utils
    found = [torch.autograd.backward, utils.clip_grad_norm_, utils.clip_grad_value_]
    found += [utils.clip_grads_with_norm_] if hasattr(utils, "clip_grads_with_norm_") else []
    return [*found, GradScaler.scale, GradScaler.unscale_, GradScaler.step]


def test_every_function_of_torch_can_be_laid_in() -> None:
    """Where this fails, a release of torch has changed and wrappers are used."""
    for function in functions():
        code = inlay(inspect.unwrap(function), lambda arguments: None, True)
        assert code is not None, function.__name__


def test_calls_returns_and_ends_are_told(told: list[Any]) -> None:
    w = weight()
    (w * 2).sum().backward()
    assert told == ["backward", ("returns", "NoneType"), "ends"]
    told.clear()
    assert torch.nn.utils.clip_grad_norm_([w], 1.0).item() == pytest.approx(12**0.5)
    assert told[0] == "clip_grad_norm_"
    assert told[-1] == ("returns", "Tensor")
    told.clear()
    torch.nn.utils.clip_grad_value_([w], 0.1)
    assert told == ["clip_grad_value_", ("returns", "NoneType")]
    told.clear()
    scaler, optimizer = GradScaler("cpu"), torch.optim.SGD([w], lr=1.0)
    scaler.scale((w * 2).sum()).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    assert [name for name in told if name in ALL] == ["scale", "backward", "unscale_", "step"]


def test_the_functions_stay_what_they_were(told: list[Any]) -> None:
    for function in functions():
        assert "steadygrad" not in str(inspect.getsourcefile(function))
        assert "steadygrad" not in inspect.getsource(function)
        assert inspect.signature(function)
    clip = torch.nn.utils.clip_grad_norm_
    assert pickle.loads(pickle.dumps(clip)) is clip


def lines_of(error: BaseException) -> list[tuple[str, int | None, str, str | None]]:
    frames = traceback.extract_tb(error.__traceback__)[1:]
    return [(f.filename, f.lineno, f.name, f.line) for f in frames]


def failures() -> list[list[tuple[str, int | None, str, str | None]]]:
    w = weight()
    w.grad = torch.full((3,), torch.nan)
    clip = torch.nn.utils.clip_grad_norm_
    found = []
    for act in (
        lambda: torch.ones(1).backward(),  # type: ignore[no-untyped-call]
        lambda: clip([w], 1.0, error_if_nonfinite=True),
        lambda: clip([w], 1.0, norm_type="q"),
        lambda: clip(),
        lambda: clip(5, 1.0),
        lambda: torch.nn.utils.clip_grad_value_([w], "a"),
        lambda: GradScaler("cpu").step(torch.optim.SGD([w], lr=1.0)),
    ):
        with pytest.raises(Exception) as info:
            act()
        found.append(lines_of(info.value))
    return found


def test_tracebacks_are_the_same_line_for_line(request: pytest.FixtureRequest) -> None:
    plain = failures()
    calls = request.getfixturevalue("told")
    assert failures() == plain
    assert "backward" in calls


def test_an_exception_ends_a_guarded_call(told: list[Any]) -> None:
    with pytest.raises(RuntimeError):
        torch.ones(1).backward()  # type: ignore[no-untyped-call]
    assert told == ["backward", "ends"]


def test_warnings_name_the_same_line(told: list[Any]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.nn.utils.clip_grad_norm_((p for p in ()), 1.0)
    assert [w.filename for w in caught] == [__file__]


def test_a_call_can_be_replaced_and_given_other_arguments() -> None:
    class Instead(Visit):
        replaced, result = True, 7

    undo = sites.CLIP_NORM.listen(Instead)
    w = weight()
    w.grad = torch.ones(3)
    assert torch.nn.utils.clip_grad_norm_([w], 1e-3) == 7
    assert undo()
    undo = sites.CLIP_NORM.listen(lambda given: Visit((given[0], 100.0, *given[2:])))
    torch.nn.utils.clip_grad_norm_([w], 1e-3)
    assert undo()
    assert w.grad.tolist() == [1.0] * 3


def test_a_function_whose_source_is_not_what_runs_is_wrapped() -> None:
    """And the wrapper tells the same."""
    scope: dict[str, Any] = {"torch": torch}
    exec("def made(a, b=2):\n    return a + b", scope)
    place = type("Place", (), {"made": staticmethod(scope["made"])})
    place.made = scope["made"]
    site, calls = Site("made", [place]), []

    def begins(arguments: tuple[Any, ...]) -> Visit:
        calls.append(arguments)
        return Told(arguments, calls)

    original = vars(place)["made"]
    undo = site.listen(begins)
    assert vars(place)["made"] is not original
    assert place.made(1) == 3
    assert calls == [(1, 2), ("returns", "int"), "ends"]
    assert undo()
    assert vars(place)["made"] is original


def test_two_listeners_are_both_told_and_the_last_leaves_torch_as_it_was() -> None:
    before = torch.autograd.backward.__code__
    calls: list[Any] = []
    undo = [sites.BACKWARD.listen(lambda given: Told(given, calls)) for _ in range(2)]
    weight().sum().backward()
    assert calls == [("returns", "NoneType")] * 2 + ["ends"] * 2
    assert undo[0]()
    assert torch.autograd.backward.__code__ is not before
    assert undo[1]()
    assert torch.autograd.backward.__code__ is before
