"""One optimizer's place in a run file: its facts, its tensors' numbers, its samples.

The writer numbers tensors; this keeps the numbers of one optimizer's table, so that
a step costs an array of them and no lookup.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from steadygrad.live.session import open_writer
from steadygrad.runlog import RunWriter, TensorInfo
from steadygrad.runlog.facts import versions_of
from steadygrad.runlog.pump import bytes_of_step
from steadygrad.torch.record.sampling import Sampler
from steadygrad.vocabulary import OnNonfinite

UNSEEDED = 67280421310721
"""What `torch.initial_seed` gives where no seed was set."""


class OptimizerRecorder:
    """One optimizer's place in a run file.

    Args:
        run: a path, for a new file that is closed with the recorder, or an open `RunWriter`.
        facts: facts about the run; those that an open writer has already stay as they are.

    Attributes:
        writer: of the run file.
        owned: the file is closed with the recorder.
        ids: numbers of the optimizer's tensors in the file, in its order.
        sampler: measures figures beyond gradients, where due.
    """

    def __init__(self, run: str | os.PathLike[str] | RunWriter, facts: dict[str, object]) -> None:
        self.owned = isinstance(run, (str, os.PathLike))
        self.writer: Any = open_writer(run, facts)
        if not self.owned:
            self._add_facts(facts)
        self.ids: NDArray[np.int64] = np.zeros(0, np.int64)
        self.step_bytes = bytes_of_step(0)
        self.sampler = Sampler(self.writer)

    def _add_facts(self, facts: dict[str, Any]) -> None:
        """To a file that is open already: what it does not say yet, and one optimizer more."""
        said = getattr(self.writer, "info", {})
        missing = {key: value for key, value in facts.items() if key not in said}
        listed = {o["index"]: o for o in said.get("optimizers", ())}
        new = [o for o in facts.get("optimizers", ()) if o["index"] not in listed]
        if new:
            missing["optimizers"] = [*listed.values(), *new]
        if missing:
            self.writer.update_info(**missing)

    def add_tensors(self, infos: Sequence[TensorInfo]) -> None:
        """Announce the optimizer's parameters, in its order; again when they change."""
        self.ids = np.asarray(self.writer.add_tensors(infos), np.int64)
        self.step_bytes = bytes_of_step(len(infos))

    def sample(self, step: int, params: Sequence[torch.Tensor]) -> None:
        """Sample figures beyond gradients, where due.

        Args:
            step: number of the step that is about to be applied.
            params: all parameters of the optimizer.
        """
        self.sample_weights(step, params)
        self.sample_activations(step, params)

    def sample_weights(self, step: int, params: Sequence[torch.Tensor]) -> None:
        """The first half of `sample`: for a step whose forward pass is still to come."""
        self._sampled(self.sampler.before_update, step, params)

    def sample_activations(self, step: int, params: Sequence[torch.Tensor]) -> None:
        """The second half: that forward pass is over."""
        self._sampled(self.sampler.after_forward, step, params)

    def _sampled(
        self, part: Callable[..., None], step: int, params: Sequence[torch.Tensor]
    ) -> None:
        sampler = self.sampler
        if step >= sampler.idle_before and len(params) == len(self.ids):
            try:
                part(step, params, self.ids)
            except Exception as error:  # of tensors of some kind that nobody thought of
                sampler.give_up()
                self.writer.update_info(sampling_ended=f"{type(error).__name__}: {error}")
            self.writer.overhead_seconds += sampler.take_seconds()

    def close(self) -> None:
        """Finish the file, where this opened it."""
        self.sampler.close()
        if self.owned:
            self.writer.close()


def settings_of(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """The numbers of its first group that explain a step, of those that are plain numbers.

    ``eps``, which float16 may not hold, and ``weight_decay``.
    """
    group = optimizer.param_groups[0]
    settings = {key: group.get(key) for key in ("eps", "weight_decay")}
    return {
        key: float(value)
        for key, value in settings.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def facts_of(
    optimizer: torch.optim.Optimizer, policy: str, on_nonfinite: OnNonfinite, index: int = 0
) -> dict[str, Any]:
    """What a new run file says about a torch training."""
    params = optimizer.param_groups[0]["params"]
    seed = torch.initial_seed()
    facts = {
        "framework": "torch",
        "versions": versions_of("torch", "numpy"),
        "device": str(params[0].device) if params else "",
        "policy": policy,
        "on_nonfinite": on_nonfinite,
        "observed_by": "attach",
        "optimizers": [
            {"class": type(optimizer).__name__, "index": index, **settings_of(optimizer)}
        ],
    }
    return facts if seed == UNSEEDED else {**facts, "seed": seed}
