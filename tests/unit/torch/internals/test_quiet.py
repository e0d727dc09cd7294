"""Calls that C takes on terms, and those that it leaves to Python."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from steadygrad.kernels import native
from steadygrad.torch.internals.private import graph_task
from steadygrad.torch.internals.quiet import (
    CallTerms,
    GradTerms,
    PassTerms,
    quiet_call,
    quiet_grad,
    quiet_pass,
)
from steadygrad.torch.record.losses import LossMeter

pytestmark = pytest.mark.skipif(not native.QUIET, reason="the extension is not built")


class Optimizer:
    """What is referred to weakly."""


class Behind:
    """The Python that stands behind a call.

    Args:
        terms: what it gives for the calls that follow; may be set.
    """

    def __init__(self, make: Callable[..., Any], terms: Any) -> None:
        self.terms = terms
        self.calls = 0
        self.faults: list[str] = []
        self.hook = make(self._call, lambda: self.terms, self._fault)

    def _call(self, *_: object) -> str:
        self.calls += 1
        return "python"

    def _fault(self, error: Exception) -> None:
        self.faults.append(f"{type(error).__name__}: {error}")


class Place(native.Stamped):
    """What terms rest on, whose changes are counted.

    Args:
        attributes: its own.
    """

    def __init__(self, **attributes: Any) -> None:
        self.reads = 0
        for name, value in attributes.items():
            setattr(self, name, value)

    def __getattribute__(self, name: str) -> Any:
        if name == "rests":
            self.reads += 1
        return super().__getattribute__(name)


@pytest.mark.parametrize("kind", [SimpleNamespace, Place])
def test_a_call_is_python_s_until_its_terms_are_known_and_while_they_do_not_hold(
    kind: Callable[..., Any],
) -> None:
    optimizer, other, state = Optimizer(), Optimizer(), SimpleNamespace(step=None)
    place = kind(rests=True, waiting=[], steps=7, last=None)
    engine = Optimizer()
    engine.step = None  # type: ignore[attr-defined]
    behind = Behind(quiet_call, None)
    terms = CallTerms(
        optimizers=(weakref.ref(other), weakref.ref(optimizer)),
        idle=(weakref.ref(engine),),
        same=((place, "rests", True),),
        empty=((place, "waiting"),),
        sets=((place, "last", state),),
        owner=place,
        counted="steps",
    )
    assert behind.hook(optimizer) == "python"  # no terms yet
    behind.terms = terms
    assert behind.hook(optimizer) == "python"  # they are asked for after a call
    assert [behind.hook(optimizer), behind.hook(other)] == [None, None]
    assert (behind.calls, place.steps, place.last) == (2, 9, state)

    place.waiting.append(1)
    assert behind.hook(optimizer) == "python"
    place.waiting.clear()
    assert behind.hook(optimizer) is None
    place.rests = False
    assert behind.hook(optimizer) == "python"
    place.rests = True
    assert behind.hook(optimizer) is None
    engine.step = state  # type: ignore[attr-defined]
    assert behind.hook(optimizer) == "python"  # a step is under way further out
    del engine
    assert behind.hook(optimizer) is None
    assert behind.hook(Optimizer()) == "python"
    assert (behind.calls, place.steps, behind.faults) == (6, 12, [])


def test_what_counts_its_changes_is_looked_at_after_one_only() -> None:
    optimizer, place, loose = Optimizer(), Place(rests=True, size=1), SimpleNamespace(open=True)
    same = ((place, "rests", True), (loose, "open", True))
    behind = Behind(quiet_call, CallTerms((weakref.ref(optimizer),), same=same))
    behind.hook(optimizer)
    assert [behind.hook(optimizer) for _ in range(3)] == [None] * 3
    assert place.reads == 1
    place.size = 2  # no terms rest on this
    assert [behind.hook(optimizer), place.reads] == [None, 1]
    place.rests = True
    assert [behind.hook(optimizer), behind.hook(optimizer), place.reads] == [None, None, 2]
    loose.open = False  # nobody counts this
    assert behind.hook(optimizer) == "python"
    loose.open = True
    assert behind.hook(optimizer) is None
    del place.rests
    assert behind.hook(optimizer) is None
    assert "rests" in behind.faults[0]


def test_what_a_property_gives_is_looked_at_each_time() -> None:
    class Door(native.Stamped):
        def __init__(self) -> None:
            self.locks: list[int] = []

        @property
        def opens(self) -> bool:
            return not self.locks

    optimizer, door = Optimizer(), Door()
    terms = CallTerms((weakref.ref(optimizer),), same=((door, "opens", True),))
    behind = Behind(quiet_call, terms)
    behind.hook(optimizer)
    assert [behind.hook(optimizer), behind.hook(optimizer)] == [None, None]
    door.locks.append(1)
    assert behind.hook(optimizer) == "python"


def test_an_exception_on_the_way_is_told_and_the_call_goes_by() -> None:
    optimizer, place = Optimizer(), SimpleNamespace()
    behind = Behind(quiet_call, CallTerms((weakref.ref(optimizer),), same=((place, "gone", 1),)))
    assert behind.hook(optimizer) == "python"
    assert behind.hook(optimizer) is None
    (told,) = behind.faults
    assert "gone" in told
    assert behind.hook(optimizer) == "python"  # with new terms after it


def test_terms_that_are_none_are_refused() -> None:
    behind = Behind(quiet_call, ["a list"])
    assert behind.hook(Optimizer()) == "python"
    assert behind.faults == ["TypeError: terms are a tuple, or None"]


def test_derivatives_by_one_input_are_let_by() -> None:
    place, x = SimpleNamespace(stepped=True), torch.ones(1)
    behind = Behind(quiet_grad, GradTerms(((place, "stepped", True),), torch.Tensor))
    assert behind.hook((x, x)) == "python"
    assert behind.hook((x, x)) is None
    assert behind.hook((x, [x])) == "python"
    assert behind.hook((x, torch.nn.Parameter(x))) == "python"  # a weight
    place.stepped = False
    assert behind.hook((x, x)) == "python"


def _scaled(meter: LossMeter) -> None:
    meter.scaled(torch.tensor(8.0), torch.tensor(4.0))


ODD_LOSSES: dict[str, tuple[Callable[[LossMeter], object], Any, Any]] = {
    "of several elements": (bool, torch.ones(2), None),
    "with a weight": (bool, torch.tensor(2.0), torch.tensor(3.0)),
    "several": (bool, [torch.tensor(1.0), torch.tensor(2.0)], None),
    "a parameter": (bool, torch.nn.Parameter(torch.tensor(5.0)), None),
    "after a scaler": (_scaled, torch.tensor(6.0), None),
    "integers": (bool, torch.tensor(3), None),
}


@pytest.mark.parametrize("odd", ODD_LOSSES)
def test_losses_are_heard_as_python_hears_them(odd: str) -> None:
    meters, kept = (LossMeter(), LossMeter()), []
    owner, thread = SimpleNamespace(passes=0), SimpleNamespace(inside=False)

    def in_python(arguments: tuple[Any, ...]) -> None:
        roots = arguments[0] if isinstance(arguments[0], list) else [arguments[0]]
        owner.passes += 1
        meters[0].saw(roots, None if arguments[1] is None else [arguments[1]])

    terms = PassTerms(
        same=(),
        now=((thread, "inside", False),),
        task=graph_task,
        tensor=torch.Tensor,
        losses=meters[0],
        owner=owner,
        counted="passes",
    )
    left: list[int] = []

    def counted(arguments: tuple[Any, ...]) -> None:
        left.append(number)
        in_python(arguments)

    hook = quiet_pass(counted, lambda: terms, kept.append)
    before, root, weight = ODD_LOSSES[odd]
    losses: list[tuple[Any, Any]] = [(torch.tensor(float(i)), None) for i in range(6)]
    losses[3] = (root, weight)
    steps_after = (0, 2, 3, 4, 5)  # two passes make the second step
    for number, (loss, scale) in enumerate(losses):
        if number == 3:
            for meter in meters:
                before(meter)
        hook((loss, scale))
        meters[1].saw(
            loss if isinstance(loss, list) else [loss], None if scale is None else [scale]
        )
        assert vars(meters[0]) == vars(meters[1]) or odd == "after a scaler"
        if number in steps_after:
            one, other = (meter.of_step() for meter in meters)
            assert (one, meters[0].backwards) == (other, meters[1].backwards)
    assert owner.passes == 6
    assert kept == []
    assert left[:3] == [0, 2, 3]  # before there are terms, a second pass, and the odd one


def test_a_pass_inside_another_is_python_s() -> None:
    meter, owner = LossMeter(), SimpleNamespace(passes=0)
    terms = PassTerms((), (), graph_task, torch.Tensor, meter, owner, "passes")
    behind = Behind(quiet_pass, terms)
    loss = torch.tensor(1.0)
    behind.hook((loss, None))
    seen: list[object] = []
    x = torch.ones(1, requires_grad=True)
    y = x * 2
    y.register_hook(lambda grad: seen.append(behind.hook((loss, None))))
    y.backward()
    assert seen == ["python"]
    assert behind.hook((loss, None)) is None
