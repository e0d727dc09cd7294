"""What a script hands to `Optimizer.apply` reaches it as it was handed over."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

from steadygrad.launch.keras_script import install
from steadygrad.launch.undoing import undo_all


def test_generators_are_not_used_up_by_observing() -> None:
    class Optimizer:
        def apply(self, grads: Iterable[int], variables: Iterable[str] | None = None) -> Any:
            return list(grads), None if variables is None else list(variables)

    observer: Any = SimpleNamespace(
        before_apply=lambda _, grads, variables: (list(grads), list(variables or ())),
        at_work=lambda *_: nullcontext(),
    )
    kind: Any = Optimizer
    install._patch_apply(kind, observer, None)
    try:
        assert kind().apply(iter([1, 2]), (name for name in "ab")) == ([1, 2], ["a", "b"])
        assert kind().apply(iter([1]), None) == ([1], None)
    finally:
        undo_all()
