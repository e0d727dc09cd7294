"""How the script's loop handles gradients: what only the first steps can show, for the rules SG6xx.

Are gradients cleared between steps, and not between backward and step? How many backward passes
make a step? Do all parameters that get a gradient belong to an optimizer, and are those that an
optimizer holds still the model's? A few elements of two gradients an optimizer answer the first
questions; they are read for `MOST_STEPS` steps, since on a device each look waits for it.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence

import torch

from steadygrad.kernels.native import Stamped
from steadygrad.launch.torch_script.census import Census
from steadygrad.launch.torch_script.chains import chains_of
from steadygrad.launch.torch_script.ownership import Ownership
from steadygrad.torch.loop.graphs import LossGraphs
from steadygrad.torch.loop.probe import MOST_STEPS, GradientProbe, begins_at_a_division

LOOK_AT = 3
"""The step, counted from 1, at which it is settled who holds which parameters."""


class LoopWatch(Stamped):
    """What the first steps show of the script's loop.

    Attributes:
        changed: there is something new for the run file.
        rests: there is nothing to learn any more, unless another optimizer comes.
    """

    def __init__(self) -> None:
        self._probes: list[GradientProbe] = []
        self._own: weakref.WeakKeyDictionary[torch.optim.Optimizer, GradientProbe]
        self._own = weakref.WeakKeyDictionary()  # an id may be used again
        self._graphs = LossGraphs()
        self._ownership = Ownership()
        self._chains: list[set[int]] = []
        self._names: dict[int, str] = {}
        self.changed = False
        self.rests = False
        self._looking = 0

    def _may_rest(self) -> None:
        self.rests = not self._looking and not self._graphs.wanted

    def follow(
        self, optimizer: torch.optim.Optimizer, index: int, names: Mapping[int, str]
    ) -> None:
        """An optimizer was seen for the first time; ``names`` by the ids of its parameters."""
        self._names.update(names)
        self._own[optimizer] = GradientProbe(weakref.ref(optimizer), index)
        self._probes.append(self._own[optimizer])
        alive = (probe for probe in self._probes if probe.optimizer() is not None)
        self._looking = sum(probe.steps < MOST_STEPS for probe in alive)
        self._may_rest()

    def saw_loose(self, leaves: Iterable[torch.Tensor]) -> None:
        """A backward reaches these, which no optimizer holds."""
        self._ownership.saw_loose(leaves)

    def before_backward(self, roots: Sequence[object], census: Census | None) -> None:
        """The script calls backward on these."""
        tensors = [root for root in roots if isinstance(root, torch.Tensor)]
        if self._graphs.wanted:
            self._graphs.saw(tensors)
            if census is not None:
                self._note_chains(chains_of(tensors, census.part_of))
            self._may_rest()
        probes = [probe for probe in self._probes if probe.looks and probe.steps]
        if probes:
            divided = any(begins_at_a_division(tensor) for tensor in tensors)
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
        for probe in self._probes:
            if probe.looks and probe.steps:
                probe.after_backward()

    def before_step(self, optimizer: torch.optim.Optimizer, census: Census) -> None:
        """An optimizer is about to step."""
        probe = self._own.get(optimizer)
        if probe is None or not probe.looks:
            return
        probe.before_step()
        self._looking -= probe.steps == MOST_STEPS
        self._may_rest()
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
            "optimizers": [probe.as_json() for probe in self._probes],
            **self._graphs.as_json(),
            "chains": self._chains_by_name(),
            **self._ownership.as_json(),
        }
