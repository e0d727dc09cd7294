"""How one optimizer's gradients are handled: cleared in time, kept, summed over several passes.

A few elements of two gradients answer that; they are read for `MOST_STEPS` steps, since on a device
each look waits for it.
"""

from __future__ import annotations

import math
import threading
import weakref
from dataclasses import dataclass, field

import torch

from steadygrad.torch.loop.elements import elements_of

MOST_STEPS = 16
PROBES = 2

_DIVIDED = ("DivBackward", "MulBackward")
_ALIKE = 0.999
"""Cosine over which two gradients are one but for a factor."""
_NEAR = 1e-3
"""How far two factors may be from each other, relatively, that are meant to be the same."""

Samples = list[tuple[weakref.ref[torch.Tensor], torch.Tensor]]
"""Parameters, and elements of their gradients."""


@dataclass
class GradientProbe:
    """A few elements of an optimizer's gradients, from one look to the next.

    Attributes:
        optimizer: held weakly.
        index: its number in the run.
        thread: the one that trains. To read a gradient that another thread accumulates is to crash.
        steps: taken so far.
        judged: steps before which it was known whether the gradients had been cleared.
        uncleared: those of them in which nothing had.
        emptied: steps whose gradients were there after backward and gone at the step.
        passes: for each step, how many backward passes were summed up in its gradients.
        undivided: steps of several passes none of which began at a division.
    """

    optimizer: weakref.ref[torch.optim.Optimizer]
    index: int
    thread: int = field(default_factory=threading.get_ident)
    steps: int = 0
    judged: int = 0
    uncleared: int = 0
    emptied: int = 0
    passes: list[int] = field(default_factory=list)
    undivided: int = 0
    _samples: Samples = field(default_factory=list)
    _left: list[weakref.ref[torch.Tensor]] = field(default_factory=list)
    _cleared: bool = True
    _summed: int = 0
    _divided: bool = False
    _filled: bool = False
    _passed: bool = False
    _factor: float = 1.0

    @property
    def looks(self) -> bool:
        """Whether there is more to learn."""
        return (
            self.steps < MOST_STEPS
            and self.thread == threading.get_ident()
            and self.optimizer() is not None
        )

    def before_backward(self, divided: bool) -> None:
        """A backward begins: do the gradients still hold what was seen last?"""
        self._passed = True
        if not self._still_there():
            self._cleared, self._summed, self._divided = True, 0, False
        self._divided = self._divided or divided

    def after_backward(self) -> None:
        """It is over: what it left is what is looked for next."""
        before = self._samples
        self._samples = self._read()
        self._left = [weakref.ref(grad) for grad in _gradients(self._samples)]
        if self._samples and not _same(before, self._samples):
            self._summed += 1
            self._filled = True

    def before_step(self) -> None:
        """The optimizer is about to step on what is there now."""
        now = self._read()
        # gradients from elsewhere tell nothing of clearing
        if self.steps and self._passed and not self._replaced(now):
            self.judged += 1
            self.uncleared += not self._cleared and bool(self._samples)
            self.emptied += self._filled and not now
            self.passes.append(self._summed)
            divides = self._divides_by_hand(now)
            self.undivided += self._summed > 1 and not self._divided and not divides
        self.steps += 1
        self._samples, self._cleared, self._filled = now, not now, False
        # what is never cleared is summed up all the same: count the passes of this step alone
        self._summed, self._divided, self._passed = 0, False, False

    def as_json(self) -> dict[str, object]:
        """The counts, for the run file."""
        return {
            "index": self.index,
            "judged": self.judged,
            "held": self.uncleared,
            "emptied": self.emptied,
            "passes": sorted(self.passes)[len(self.passes) // 2] if self.passes else 0,
            "undivided": self.undivided,
        }

    def _replaced(self, now: Samples) -> bool:
        """Whether other gradients stand there than the last backward left, and not scaled ones."""
        grads = _gradients(now)
        if not self._left or len(grads) != len(self._left):
            return False
        others = all(ref() is not grad for ref, grad in zip(self._left, grads, strict=True))
        return others and not _alike(self._samples, now)

    def _divides_by_hand(self, now: Samples) -> bool:
        """Whether the script has divided the gradients, by the passes or as at the step before.

        A clip's factor is another one at each step, and a loss scale is a power of two.
        """
        if not now or len(now) != len(self._samples) or not _alike(self._samples, now):
            return False
        before, after = (
            math.hypot(*(float(sample.double().norm()) for _, sample in part))
            for part in (self._samples, now)
        )
        last, self._factor = self._factor, after / before
        if not 0.0 < self._factor < math.inf:
            return False
        if math.isclose(self._factor * self._summed, 1.0, rel_tol=_NEAR):
            return True
        doublings = math.log2(self._factor)
        is_scale = math.isclose(doublings, round(doublings), abs_tol=_NEAR)
        return not is_scale and math.isclose(self._factor, last, rel_tol=_NEAR)

    def _still_there(self) -> bool:
        if not self._samples:
            return False
        pairs = [(ref(), sample) for ref, sample in self._samples]
        return all(p is not None and _holds(p.grad, sample) for p, sample in pairs)

    def _read(self) -> Samples:
        """Elements of the last gradients that are there and not zero."""
        optimizer = self.optimizer()
        if optimizer is None:
            return []
        read: Samples = []
        for group in reversed(optimizer.param_groups):
            for parameter in reversed(group["params"]):
                sample = elements_of(parameter.grad)
                if sample is not None and bool(sample.any()):
                    read.append((weakref.ref(parameter), sample))
                    if len(read) == PROBES:
                        return read
        return read


def _holds(grad: object, sample: torch.Tensor) -> bool:
    now = elements_of(grad)
    return now is not None and now.shape == sample.shape and torch.equal(now, sample)


def _gradients(samples: Samples) -> list[torch.Tensor]:
    """The gradients themselves, of the parameters that are alive."""
    parameters = [parameter for ref, _ in samples if (parameter := ref()) is not None]
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def _alike(before: Samples, after: Samples) -> bool:
    """Whether two samples are one but for a factor, as a clip or an average by hand leaves them."""
    a, b = (torch.cat([sample.double() for _, sample in part]) for part in (before, after))
    if a.shape != b.shape or a.numel() == 1:
        return False
    return float(a @ b) >= _ALIKE * float(a.norm() * b.norm())


def _same(before: Samples, after: Samples) -> bool:
    if len(before) != len(after):
        return False
    pairs = zip(before, after, strict=True)
    return all(
        a[0]() is b[0]() and a[1].shape == b[1].shape and torch.equal(a[1], b[1]) for a, b in pairs
    )


def begins_at_a_division(root: torch.Tensor) -> bool:
    """Whether the last thing done to a loss was to divide it, or to multiply it."""
    name = "" if root.grad_fn is None else root.grad_fn.name()
    return name.startswith(_DIVIDED)
