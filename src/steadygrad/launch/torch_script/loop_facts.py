"""How the script's loop handles gradients: what only the first steps can show, for the rules SG6xx.

Are gradients cleared between steps, and not between backward and step? How many backward passes
make a step? Do all parameters that get a gradient belong to an optimizer, and are those that an
optimizer holds still the model's? A few elements of two gradients an optimizer answer the first
questions; they are read for `MOST_STEPS` steps, since on a device each look waits for it.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from steadygrad.launch.torch_script.broadcast import broadcast_of
from steadygrad.launch.torch_script.census import Census
from steadygrad.launch.torch_script.chains import chains_of
from steadygrad.launch.torch_script.elements import elements_of
from steadygrad.launch.torch_script.logits import logits_of
from steadygrad.launch.torch_script.ownership import Ownership
from steadygrad.launch.torch_script.reduction import summed_of
from steadygrad.launch.torch_script.sizes import sizes_of
from steadygrad.launch.torch_script.targets import targets_of

MOST_STEPS = 16
LOOK_AT = 3
"""The step, counted from 1, at which it is settled who holds which parameters."""
PROBES = 2
MOST_GRAPHS = 3

_DIVIDED = ("DivBackward", "MulBackward")


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
    _samples: list[tuple[weakref.ref[torch.Tensor], torch.Tensor]] = field(default_factory=list)
    _cleared: bool = True
    _summed: int = 0
    _divided: bool = False
    _filled: bool = False
    _passed: bool = False

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
        if self._samples and not _same(before, self._samples):
            self._summed += 1
            self._filled = True

    def before_step(self) -> None:
        """The optimizer is about to step on what is there now."""
        now = self._read()
        if self.steps and self._passed:  # gradients from elsewhere tell nothing of clearing
            self.judged += 1
            self.uncleared += not self._cleared and bool(self._samples)
            self.emptied += self._filled and not now
            self.passes.append(self._summed)
            self.undivided += self._summed > 1 and not self._divided
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

    def _still_there(self) -> bool:
        if not self._samples:
            return False
        pairs = [(ref(), sample) for ref, sample in self._samples]
        return all(p is not None and _holds(p.grad, sample) for p, sample in pairs)

    def _read(self) -> list[tuple[weakref.ref[torch.Tensor], torch.Tensor]]:
        """Elements of the last gradients that are there and not zero."""
        optimizer = self.optimizer()
        if optimizer is None:
            return []
        read: list[tuple[weakref.ref[torch.Tensor], torch.Tensor]] = []
        for group in reversed(optimizer.param_groups):
            for parameter in reversed(group["params"]):
                sample = elements_of(parameter.grad)
                if sample is not None and bool(sample.any()):
                    read.append((weakref.ref(parameter), sample))
                    if len(read) == PROBES:
                        return read
        return read


class LoopWatch:
    """What the first steps show of the script's loop."""

    def __init__(self) -> None:
        self._probes: dict[int, GradientProbe] = {}
        self._graphs = 0
        self._logits: dict[str, str] | None = None
        self._targets: dict[str, Any] | None = None
        self._broadcast: list[int] = []
        self._sizes: dict[str, Any] | None = None
        self._summed = 0
        self._ownership = Ownership()
        self._chains: list[set[int]] = []
        self._names: dict[int, str] = {}
        self.changed = False

    def follow(
        self, optimizer: torch.optim.Optimizer, index: int, names: Mapping[int, str]
    ) -> None:
        """An optimizer was seen for the first time; ``names`` by the ids of its parameters."""
        self._names.update(names)
        self._probes[id(optimizer)] = GradientProbe(weakref.ref(optimizer), index)

    def saw_loose(self, leaves: Iterable[torch.Tensor]) -> None:
        """A backward reaches these, which no optimizer holds."""
        self._ownership.saw_loose(leaves)

    def before_backward(self, roots: Sequence[object], census: Census | None) -> None:
        """The script calls backward on these."""
        tensors = [root for root in roots if isinstance(root, torch.Tensor)]
        if self._graphs < MOST_GRAPHS:
            self._graphs += 1
            self._logits = self._logits or logits_of(tensors)
            self._targets = self._targets or targets_of(tensors)
            self._broadcast = self._broadcast or broadcast_of(tensors)
            self._sizes = self._sizes or sizes_of(tensors)
            self._summed = max(self._summed, summed_of(tensors))
            if census is not None:
                self._note_chains(chains_of(tensors, census.part_of))
        probes = [probe for probe in self._probes.values() if probe.looks and probe.steps]
        if probes:
            divided = any(_begins_at_a_division(tensor) for tensor in tensors)
            for probe in probes:
                probe.before_backward(divided)

    def _note_chains(self, chains: list[set[int]]) -> None:
        new = [chain for chain in chains if not any(chain <= earlier for earlier in self._chains)]
        remaining = [
            earlier for earlier in self._chains if not any(earlier < chain for chain in new)
        ]
        self._chains = [*remaining, *new]

    def after_backward(self) -> None:
        """That backward is done."""
        for probe in self._probes.values():
            if probe.looks and probe.steps:
                probe.after_backward()

    def before_step(self, optimizer: torch.optim.Optimizer, census: Census) -> None:
        """An optimizer is about to step."""
        probe = self._probes.get(id(optimizer))
        if probe is None or not probe.looks:
            return
        probe.before_step()
        self.changed = probe.steps in (LOOK_AT, MOST_STEPS)
        self._ownership.before_step(optimizer)
        if probe.steps == LOOK_AT:
            self._ownership.settle(optimizer, probe.index, census)

    def _chains_by_name(self) -> list[list[str]]:
        """The chains where there are several; one chain is what everybody takes a model for."""
        named = [[self._names[i] for i in chain if i in self._names] for chain in self._chains]
        named = [sorted(names) for names in named if names]
        return named if len(named) > 1 else []

    def as_json(self) -> dict[str, object]:
        """All of it, for the run file."""
        self.changed = False
        return {
            "optimizers": [probe.as_json() for probe in self._probes.values()],
            "logits": self._logits,
            "targets": self._targets,
            "broadcast": self._broadcast,
            "sizes": self._sizes,
            "summed": self._summed,
            "chains": self._chains_by_name(),
            **self._ownership.as_json(),
        }


def _holds(grad: object, sample: torch.Tensor) -> bool:
    now = elements_of(grad)
    return now is not None and now.shape == sample.shape and torch.equal(now, sample)


def _same(
    before: list[tuple[weakref.ref[torch.Tensor], torch.Tensor]],
    after: list[tuple[weakref.ref[torch.Tensor], torch.Tensor]],
) -> bool:
    if len(before) != len(after):
        return False
    pairs = zip(before, after, strict=True)
    return all(
        a[0]() is b[0]() and a[1].shape == b[1].shape and torch.equal(a[1], b[1]) for a, b in pairs
    )


def _begins_at_a_division(root: torch.Tensor) -> bool:
    name = "" if root.grad_fn is None else root.grad_fn.name()
    return name.startswith(_DIVIDED)
