"""The facts of a loop as an attached optimizer can know them: its losses and its own gradients.

Who holds which parameters, and which networks stand side by side, is known only where the whole
script is watched. No device is waited for: there, what takes a look at values is left out.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Sequence

import torch

from steadygrad.runlog.writer import RunWriter
from steadygrad.torch.gradients.parameters import parameters_of
from steadygrad.torch.internals import sites
from steadygrad.torch.internals.inlay import Arguments, Visit
from steadygrad.torch.internals.patches import PatchSet
from steadygrad.torch.loop.graphs import LossGraphs
from steadygrad.torch.loop.probe import MOST_STEPS, GradientProbe, begins_at_a_division

EARLY = 5
"""The step after which they are written for the first time: a run may be short."""


class AttachedLoop:
    """Looks at the first steps of one recorded optimizer, and writes what they show.

    Args:
        optimizer: whose gradients are looked at; held weakly.
        index: its number in the run.
        writer: of the run file.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, index: int, writer: RunWriter) -> None:
        self._probe = GradientProbe(weakref.ref(optimizer), index)
        self._graphs = LossGraphs()
        self._writer = writer
        self._steps = 0
        self._over = False
        parameters = parameters_of(optimizer)
        self._at_hand = all(p.device.type == "cpu" for p in parameters)

    def begin(self) -> None:
        """From now on, be told of backward passes, until `end` or until this is gone."""
        _listening.hold(self)

    def end(self) -> None:
        """Look no more; with the last one, torch is as it was."""
        self._over = True
        _listening.release(self)

    def before_backward(self, roots: Sequence[object]) -> None:
        """Backward is called on these."""
        tensors = [root for root in roots if isinstance(root, torch.Tensor)]
        if self._graphs.wanted:
            self._graphs.saw(tensors, values=self._at_hand)
        if self._looks and self._probe.steps:
            self._probe.before_backward(any(map(begins_at_a_division, tensors)))

    def after_backward(self) -> None:
        """That backward is done."""
        if self._looks and self._probe.steps:
            self._probe.after_backward()

    def after_step(self, *_: object) -> None:
        """The optimizer has stepped; its gradients are those that it applied."""
        self.guarded(self._count)

    def guarded(self, look: Callable[[], None]) -> None:
        """Look, and after a fault look no more: the training goes on."""
        try:
            look()
        except Exception:
            self.end()

    @property
    def _looks(self) -> bool:
        return self._at_hand and self._probe.looks

    def _count(self) -> None:
        if self._over:
            return
        self._steps += 1
        if self._looks:
            self._probe.before_step()
        if self._steps in (EARLY, MOST_STEPS):
            self._write()
        if self._steps == MOST_STEPS:
            self.end()

    def _write(self) -> None:
        """Beside what is known of other optimizers, and what earlier losses showed."""
        before = dict(getattr(self._writer, "info", {}).get("loop") or {})
        counts = self._probe.as_json()
        others = [o for o in before.get("optimizers", ()) if o["index"] != counts["index"]]
        seen = {key: value for key, value in self._graphs.as_json().items() if value}
        loop = {**self._graphs.as_json(), **before, **seen, "optimizers": [*others, counts]}
        self._writer.update_info(loop=loop)


def _make(patches: PatchSet) -> None:
    patches.add(sites.BACKWARD.listen(_backward))


_listening = PatchSet(_make)


class _Backward(Visit):
    """One call of `backward`."""

    def returns(self, result: object) -> object:
        for loop in _listeners():
            loop.guarded(loop.after_backward)
        return result


def _backward(arguments: Arguments) -> Visit | None:
    if not _listening.holders or sites.inside_backward():
        return None
    roots = arguments[0]
    if not isinstance(roots, (torch.Tensor, tuple, list)):
        return None
    for loop in _listeners():
        loop.guarded(functools.partial(loop.before_backward, sites.listed(roots)))
    return _Backward(arguments)


def _listeners() -> list[AttachedLoop]:
    return [loop for loop in _listening.holders if isinstance(loop, AttachedLoop)]
