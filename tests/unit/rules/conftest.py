"""A maker of small synthetic runs: healthy unless told otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from steadygrad.rules import Finding, diagnose
from steadygrad.runlog import Event, Run, TensorInfo
from steadygrad.runlog.encode import (
    CODE_EXACT,
    decode_magnitudes,
    decode_shares,
    encode_magnitudes,
    encode_shares,
)

STEPS = 120
LAYERS = 6


@dataclass
class Maker:
    """Columns of a run; tests change what they need, and call `run`.

    A stack of `layers` linear layers with a bias each, lognormal norms around 1, a loss
    that falls from 2 to 0.5, no clipping.
    """

    steps: int = STEPS
    layers: int = LAYERS
    seed: int = 0
    columns: dict[str, Any] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    samples: dict[str, tuple[Any, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        self.tensors = [
            TensorInfo(f"{layer}.{part}", shape, "float32", "Linear", layer)
            for layer in range(self.layers)
            for part, shape in (("weight", (16, 16)), ("bias", (16,)))
        ]
        shape = (self.steps, len(self.tensors))
        self.norms = np.exp(rng.normal(0, 0.2, shape))
        self.max_abs = self.norms / 4
        self.nonfinite = np.zeros(shape)
        self.zeros = np.zeros(shape)
        self.loss = np.linspace(2.0, 0.5, self.steps) * np.exp(rng.normal(0, 0.02, self.steps))

    def column(self, name: str) -> int:
        return [t.name for t in self.tensors].index(name)

    def break_from(self, step: int, until: int | None = None, value: float = np.nan) -> None:
        """Every tensor holds NaN (or inf) from a step on."""
        self.norms[step:until] = value
        self.nonfinite[step:until] = 4

    def clip(self, threshold: float) -> None:
        """Clip by norm, as a policy would."""
        norm = self.total
        self.columns["threshold"] = np.full(self.steps, threshold)
        self.columns["coef"] = np.minimum(1.0, threshold / norm)
        self.columns["action"] = np.where(norm > threshold, "clip", "none")

    def sample(
        self, name: str, values: Mapping[str, float], steps: tuple[int, ...] = (0, 1, 2)
    ) -> None:
        """The same figures at some steps; tensors that are not named are not measured."""
        row = [values.get(t.name, np.nan) for t in self.tensors]
        self.samples[name] = (np.array(steps), np.array([row] * len(steps), dtype=float))

    def call(self, step: int, **data: Any) -> None:
        """A clip call of the script, well placed unless told otherwise."""
        sound = {
            "max_norm": 5.0, "norm_type": 2.0, "norm": self.total[step], "coef": 1.0,
            "params": len(self.tensors), "passed": len(self.tensors),
            "of_params": len(self.tensors), "backward_since_step": 1, "backward_since_clip": 1,
            "repeated": 0, "after_step": False, "unscaled": True, "by_value": False,
            "on_gradients": False, "optimizer": 0,
        }  # fmt: skip
        self.events.append(Event(step, 0.0, "script_clip", {**sound, **data, "step": step}))

    @property
    def total(self) -> np.ndarray:
        return np.sqrt((self.norms**2).sum(axis=1))

    @property
    def run(self) -> Run:
        steps = {
            "norm": self.total,
            "loss": self.loss,
            "lr": np.full(self.steps, 0.01),
            "nonfinite": self.nonfinite.sum(axis=1),
            **self.columns,
        }
        return Run.from_arrays(
            steps=steps,
            tensors=self.tensors,
            tensor_norms=as_in_a_file(self.norms),
            tensor_max_abs=as_in_a_file(self.max_abs),
            tensor_nonfinite=self.nonfinite,
            tensor_zeros=decode_shares(encode_shares(self.zeros)),
            info={"framework": "torch", **self.info},
            events=self.events,
            samples=self.samples,
        )

    @property
    def findings(self) -> list[Finding]:
        return diagnose(self.run)

    @property
    def ids(self) -> list[str]:
        return [f.id for f in self.findings]


def as_in_a_file(magnitudes: np.ndarray) -> np.ndarray:
    """Figures of tensors to the digits that a run file keeps of them: rules get no others."""
    codes = encode_magnitudes(np.asarray(magnitudes, dtype=np.float64))
    return np.where(codes == CODE_EXACT, magnitudes, decode_magnitudes(codes))


@pytest.fixture
def make() -> Callable[..., Maker]:
    return Maker
