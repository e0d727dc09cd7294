"""Writing a JAX run: figures leave the device without the training waiting for them.

The figures stand in the optimizer's state, which the next jitted step may overwrite
(donated buffers). They are therefore copied on the device at once, sent to the host
asynchronously, and read one step late, when they have arrived.
"""

from __future__ import annotations

import atexit
import os
import tempfile
import weakref
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from steadygrad.errors import UsageError
from steadygrad.jax._whole import whole_here
from steadygrad.jax.engine import leaf_names
from steadygrad.jax.transform import ClipState
from steadygrad.jax.weights import Figures as WeightFigures
from steadygrad.jax.weights import WeightSamples
from steadygrad.live.handle import Handle
from steadygrad.live.session import hand_over_late_steps, is_interactive, open_writer
from steadygrad.processes import writes_for_all
from steadygrad.runlog import RunWriter, StepRecord, TensorInfo
from steadygrad.runlog.facts import versions_of
from steadygrad.typing import internal
from steadygrad.vocabulary import ACTIONS

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from numpy.typing import NDArray

    from steadygrad.typing import PyTree

Figures = tuple[list[ClipState], tuple[jax.Array | None, jax.Array | None], WeightFigures | None]


class Recorder(Handle):
    """Writes steps from optimizer states into a run file.

    Args:
        run: a path for a new file, which the first of several processes writes for all, or an open
            `RunWriter`.
        params: the parameters that training starts from, for their shapes in the file and the
            first sample of their norms; optional.
        info: facts about the run, e.g. ``{"seed": 0}``.

    Raises:
        RunFileError: a file stands at the path already.
    """

    how_to_record = "record(run, opt_state, loss) after each update"

    def __init__(
        self,
        run: str | os.PathLike[str] | RunWriter,
        params: PyTree = None,
        info: dict[str, object] | None = None,
    ) -> None:
        self._elsewhere: tempfile.TemporaryDirectory[str] | None = None
        if not writes_for_all(
            run
        ):  # all compute the same figures together: this file is thrown away
            self._elsewhere = tempfile.TemporaryDirectory()
            run = os.path.join(self._elsewhere.name, "run.db")
        self._run, self._params, self._facts = run, params, info or {}
        self._waiting: list[Figures] = []
        self._begin(params)
        hand_over_late_steps(self, Recorder.hand_over)

    def _begin(self, params: object) -> None:
        self.writer = open_writer(self._run)
        self.writer.update_info(
            framework="jax",
            versions=versions_of("jax", "optax", "numpy"),
            device=jax.default_backend(),
            observed_by="record",
            **self._facts,
        )
        self._ids: dict[int, NDArray[np.int64]] = {}
        self._weights = WeightSamples(params)
        self._numbers: dict[str, int] = {}
        self._entered: dict[int, int] = {}
        self._latest: StepRecord | None = None

    def record(
        self,
        opt_state: PyTree,
        loss: ArrayLike | None = None,
        lr: ArrayLike | None = None,
        params: PyTree = None,
    ) -> None:
        """Hand over one step.

        Args:
            opt_state: an optimizer state that holds one or more `ClipState`.
            loss: 0-d, or None.
            lr: learning rate, 0-d, or None.
            params: the parameters that the step has made, to sample at some steps; or None.

        Raises:
            UsageError: no `ClipState` in the state.
            TrainingStopped: an alert asked for it.
        """
        states = clip_states(opt_state)
        if not states:
            raise UsageError(
                "record found no steadygrad.jax.clip or guard in this optimizer state; build the "
                "optimizer with steadygrad.jax.guard(optax.adam(...), clip='none') to observe only"
            )
        figures = (
            *_copied([s._replace(policy={}) for s in states], (loss, lr)),
            self._weights.taken(params, self._entered.get(0, 0)),
        )
        figures = whole_here(figures)
        for leaf in jax.tree.leaves(figures):
            leaf.copy_to_host_async()
        self._waiting.append(figures)
        if len(self._waiting) > 1:
            self._write(self._waiting.pop(0))
        self.writer.stop_if_asked()

    def _write(self, figures: Figures) -> None:
        states, (loss, lr), weights = jax.tree.map(np.asarray, figures)
        if self._is_run_again(states):
            self.writer.close()
            self._begin(None)
        fresh = [n for n, s in enumerate(states) if int(s.step) != self._entered.get(n, 0)]
        for number in fresh:  # the others add up micro-batches, or were frozen
            self._entered[number] = int(states[number].step)
            self._write_step(number, states[number], loss, lr)
        if weights is not None and 0 in fresh:
            self._weights.write(self.writer, self._numbers, self._entered[0], weights)

    def _is_run_again(self, states: list[ClipState]) -> bool:
        """Whether a cell that records into a path has been run again, on a new optimizer state."""
        if isinstance(self._run, RunWriter) or not is_interactive():
            return False
        return any(int(s.step) < self._entered.get(n, 0) for n, s in enumerate(states))

    def _write_step(self, number: int, state: ClipState, loss: object, lr: object) -> None:
        ids = self._ids_of(number, state)
        shape = state.leaf_norms.shape
        unknown = np.full(shape, np.nan)
        full = state.leaf_max_abs.shape == shape
        record = _record(number, state, loss, lr)
        self._latest = record if number == 0 else self._latest
        self.writer.write_step(
            record,
            ids,
            state.leaf_norms,
            state.leaf_max_abs if full else unknown,
            state.leaf_nonfinite,
            state.leaf_zeros if full else unknown,
        )

    def _ids_of(self, number: int, state: ClipState) -> NDArray[np.int64]:
        if number not in self._ids:
            infos = _infos(state, number, self._params)
            self._ids[number] = np.asarray(self.writer.add_tensors(infos), np.int64)
            named = zip((info.name for info in infos), self._ids[number].tolist(), strict=True)
            self._numbers = {**dict(named), **self._numbers}
        return self._ids[number]

    @internal
    def hand_over(self) -> None:
        """Write the step that is still on its way."""
        while self._waiting:
            self._write(self._waiting.pop(0))

    def flush(self) -> None:
        """Write the step that is still on its way, and wait until the file holds it."""
        self.hand_over()
        self.writer.flush()

    def _recorded_by(self) -> RunWriter:
        return self.writer

    def _policy(self) -> str:
        return str(self.writer.info.get("policy", ""))

    def _last(self) -> StepRecord | None:
        self.hand_over()
        return self._latest

    def close(self) -> None:
        """Write what is left and close the file."""
        self.flush()
        self.writer.close()
        if self._elsewhere is not None:
            self._elsewhere.cleanup()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_RECORDERS: dict[int | str, Recorder] = {}


def record(
    run: str | os.PathLike[str] | RunWriter | Recorder,
    opt_state: PyTree,
    loss: ArrayLike | None = None,
    lr: ArrayLike | None = None,
    *,
    params: PyTree = None,
) -> None:
    """Write one step into a run file, asynchronously; call it after each update.

    Args:
        run: a path (a new file, closed when the process ends), a `RunWriter` or a `Recorder`.
        opt_state: an optimizer state that holds `clip` or `guard`.
        loss: 0-d, or None.
        lr: learning rate, 0-d, or None.
        params: the parameters that the step has made. At some steps their norms and how far
            they moved are recorded, for the rules on weights.

    Raises:
        UsageError: no `ClipState` in the state.
        RunFileError: a file stood at the path before this process began to write it.

    Example:
        >>> import tempfile, jax.numpy as jnp, optax, steadygrad, steadygrad.jax as sg
        >>> tx, params = sg.guard(optax.sgd(0.1)), {"w": jnp.zeros(2)}
        >>> with sg.Recorder(tempfile.mkdtemp() + "/run.db", params) as run:
        ...     _, state = tx.update({"w": jnp.array([3.0, 4.0])}, tx.init(params), params)
        ...     sg.record(run, state, loss=0.5)
        >>> steadygrad.open_run(run.writer.path).steps.norm
        array([5.])
    """
    _recorder(run).record(opt_state, loss, lr, params)


def clip_states(opt_state: PyTree) -> list[ClipState]:
    """Every `ClipState` inside an optimizer state, in order.

    Example:
        >>> import optax, steadygrad.jax as sg
        >>> tx = optax.chain(sg.clip("norm:1.0"), optax.sgd(0.1))
        >>> len(clip_states(tx.init({"w": 0.0})))
        1
    """

    def is_clip_state(node: PyTree) -> bool:
        return isinstance(node, ClipState)

    return [
        node for node in jax.tree.leaves(opt_state, is_leaf=is_clip_state) if is_clip_state(node)
    ]


def _recorder(run: str | os.PathLike[str] | RunWriter | Recorder) -> Recorder:
    if isinstance(run, Recorder):
        return run
    key = id(run) if isinstance(run, RunWriter) else os.path.abspath(run)
    if key not in _RECORDERS:
        _RECORDERS[key] = Recorder(run)
        if isinstance(run, RunWriter):
            weakref.finalize(run, _RECORDERS.pop, key, None)
        atexit.register(_RECORDERS[key].close)
    return _RECORDERS[key]


_copied = jax.jit(lambda states, scalars: jax.tree.map(jnp.copy, (states, scalars)))


def _record(
    number: int, state: ClipState, loss: ArrayLike | None, lr: ArrayLike | None
) -> StepRecord:
    return StepRecord(
        step=int(state.step) - 1,
        loss=np.nan if loss is None else float(loss),
        norm=float(state.norm),
        threshold=float(state.threshold),
        coef=float(state.coef),
        action=ACTIONS[int(state.action)],
        lr=np.nan if lr is None else float(lr),
        nonfinite=int(state.nonfinite),
        cosine=float(state.cosine),
        optimizer=number,
        loss_told=loss is not None,
    )


def _infos(state: ClipState, number: int, params: PyTree) -> list[TensorInfo]:
    leaf_of = dict(zip(leaf_names(params), jax.tree.leaves(params), strict=True))
    infos = []
    for entry in state.names:
        name = next(iter(entry))
        leaf = leaf_of.get(name)
        shape = () if leaf is None else tuple(leaf.shape)
        dtype = "" if leaf is None else str(leaf.dtype)
        infos.append(TensorInfo(name, shape, dtype, optimizer=number))
    return infos
