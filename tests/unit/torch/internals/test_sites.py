"""Who is told of a call of torch's functions."""

from __future__ import annotations

import types
from collections.abc import Callable

import pytest
import torch

from steadygrad.torch.internals import sites
from steadygrad.torch.internals.inlay import Arguments


def twice(x: float) -> float:
    return 2 * x


@pytest.fixture
def place() -> types.SimpleNamespace:
    return types.SimpleNamespace(twice=twice)


def test_listeners_are_told_in_order_also_those_that_come_and_go_between_calls(
    place: types.SimpleNamespace,
) -> None:
    site, told = sites.Site("twice", [place]), []

    def listener(name: str) -> Callable[[Arguments], None]:
        return lambda arguments: told.append((name, *arguments))

    leave = {name: site.listen(listener(name)) for name in "a"}
    assert [place.twice(1.0), place.twice(x=2.0)] == [2.0, 4.0]
    leave["b"] = site.listen(listener("b"))
    place.twice(3.0)
    assert leave["a"]()
    place.twice(4.0)
    place.twice(5.0)
    assert leave["b"]()
    place.twice(6.0)
    assert told == [("a", 1.0), ("a", 2.0), ("a", 3.0), ("b", 3.0), ("b", 4.0), ("b", 5.0)]
    assert place.twice is twice


def test_a_listener_may_bring_in_a_second_at_its_first_call(place: types.SimpleNamespace) -> None:
    site, told = sites.Site("twice", [place]), []

    def first(arguments: Arguments) -> None:
        told.append("first")
        if len(told) == 1:
            site.listen(lambda arguments: told.append("second"))

    site.listen(first)
    place.twice(1.0)
    place.twice(1.0)
    assert told == ["first", "second", "first", "second"]


def test_a_backward_that_one_listens_to_calls_it_without_a_function_between(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts = []
    begin = sites.Site._begin
    monkeypatch.setattr(sites.Site, "_begin", lambda *given: counts.append(1) or begin(*given))
    seen = []
    site = sites.Site("backward", [torch.autograd])
    leave = site.listen(lambda arguments: seen.append(1))
    for _ in range(4):
        torch.ones(1, requires_grad=True).sum().backward()
    assert leave()
    assert (len(seen), len(counts)) == (4, 1 if sites.native.GATE else 4)
