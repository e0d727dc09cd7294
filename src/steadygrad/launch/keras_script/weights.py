"""Weights of a Keras model under `steadygrad run`, sampled between the steps of `fit`.

`fit` and `train_on_batch` both call the model's ``train_function``, which is wrapped here:
a callback would have Keras bring the loss to the host after every batch. On JAX the weights
of the moment are in the state that goes in and comes out; the model's own are stale.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np

from steadygrad.keras.engines import to_numpy
from steadygrad.keras.sampling import VariableSampler, recurrent_lengths
from steadygrad.launch.blame import aside

if TYPE_CHECKING:
    import keras
    from numpy.typing import NDArray

    from steadygrad.launch.keras_script.ground import Ground
    from steadygrad.launch.track import Track
    from steadygrad.typing import Array, PyTree

JaxState = tuple["Sequence[Array]", ...]
"""What training on JAX passes around; the weights come first."""


class TracksByOptimizer(Protocol):
    """Who knows the steps of each optimizer.

    Attributes:
        model: the one that trains.
        ground: what Keras runs on.
    """

    model: keras.Model | None
    ground: Ground

    @property
    def is_asked_to_stop(self) -> bool:
        """Whether the training should end after this call."""

    def tracks_of(self, optimizer: keras.Optimizer) -> list[Track]:
        """The steps of an optimizer, or of its members."""

    def guarded(self, what: str, act: Callable[..., object], *arguments: object) -> None:
        """Call ``act``; what it raises is a trouble of ours, not the script's."""


class WeightWatch:
    """Samples the weights of one model while it trains.

    Args:
        observer: knows the steps of its optimizer.
        model: it.
    """

    def __init__(self, observer: TracksByOptimizer, model: keras.Model) -> None:
        self._observer, self._ref = observer, weakref.ref(model)
        self._samplers: dict[Track, VariableSampler] = {}
        self._start: dict[int, NDArray[np.generic]] = {}
        self._now: dict[int, Array] = {}
        self._wait = 0

    @property
    def _model(self) -> keras.Model:
        """It is the one that calls, and so is alive."""
        return self._ref()

    def around(self, function: Callable[..., PyTree]) -> Callable[..., PyTree]:
        """A training function that samples before its first call and after some."""
        if hasattr(function, "steadygrad_watches"):
            return function

        def train_function(*arguments: PyTree) -> PyTree:
            self._observer.guarded("weights are not sampled", self._before, arguments)
            with aside:
                result = function(*arguments)
            self._observer.guarded("weights are not sampled", self._after, result)
            if self._observer.is_asked_to_stop:
                self._model.stop_training = True  # as Keras' own callbacks do
            return result

        train_function.steadygrad_watches = True  # type: ignore[attr-defined]
        return train_function

    def _before(self, arguments: tuple[JaxState, ...]) -> None:
        self._observer.model = self._model
        if not self._samplers and not self._tracks():
            self._look(arguments[0])
            self._start = {id(v): self._read(v) for v in self._model.trainable_variables}
            self._now = {}

    def _after(self, returned: PyTree) -> None:
        """A call is over: it took at most `steps_per_execution` steps."""
        self._wait -= int(self._model.steps_per_execution)
        if self._wait > 0:
            return
        self._look(
            cast("tuple[PyTree, JaxState]", returned)[1] if self._observer.ground.is_jax else None
        )
        waits = [self._sample(track) for track in self._tracks()]
        self._wait = min(waits, default=0)
        self._now = {}

    def _look(self, state: JaxState | None) -> None:
        """Note where JAX has its weights: first of all in what is passed around."""
        if state is not None and self._observer.ground.is_jax:
            pairs = zip(self._model.trainable_variables, state[0], strict=True)
            self._now = {id(variable): value for variable, value in pairs}

    def _read(self, variable: keras.Variable) -> NDArray[np.generic]:
        value = self._now.get(id(variable))
        return to_numpy(variable) if value is None else np.array(value)

    def _tracks(self) -> list[Track]:
        return self._observer.tracks_of(self._model.optimizer)

    def _sample(self, track: Track) -> int:
        """Sample if it is time; returns the steps until it may be time again."""
        steps = track.settled()
        if steps and track.ids is not None:
            if track not in self._samplers:
                self._samplers[track] = self._begun(track, steps)
            self._samplers[track].at_step(steps)
        return self._samplers[track].wait(steps) if track in self._samplers else 0

    def _begun(self, track: Track, steps: int) -> VariableSampler:
        lengths = recurrent_lengths(self._model)
        time_steps = [lengths.get(id(v), 0) for v in track.variables]
        assert track.writer is not None
        assert track.ids is not None  # a step was written
        sampler = VariableSampler(track.writer, track.variables, track.ids, time_steps, self._read)
        start = [self._start[id(v)] for v in track.variables if id(v) in self._start]
        if steps == 1 and len(start) == len(track.variables):
            sampler.at_step(0, start)
        self._start = {}
        return sampler
