"""Clipping in JAX and TensorFlow: against optax's and TensorFlow's own global-norm clip.

    python -m benchmarks --parts jax tensorflow
    python -m benchmarks.jax_tf [--library jax|tensorflow] [--leaves gpt2 small] [--seconds 2]

Both libraries compile; how long that takes, from the first trace on, is a row of its own; in
TensorFlow, which loads parts of itself in the first call, it is timed in new processes. The
same compiled step meets gradients that are clipped and gradients that are not.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np

from benchmarks.rows import Row, described, rows_of, table
from benchmarks.shapes import gpt2_small
from benchmarks.timing import Contender, best_of

LIMIT = 1.0
ACTIVE = {"active": 1.0, "inactive": 1e-9}
"""What gradients of a norm over `LIMIT` are multiplied by."""

COMPILE_TARGET = 2.0


LEAVES: dict[str, tuple[str, Callable[[], list[tuple[int, ...]]], float]] = {
    "gpt2": ("GPT-2 small, 148 leaves, 124 M", gpt2_small, 1.0),
    "small": ("1000 small leaves, 2 M", lambda: [(2000,)] * 1000, 1.2),
}
TF_CLIPS = ("tensorflow clip_by_global_norm", "steadygrad clip_by_global_norm")
MANY = ("4096 bfloat16 leaves, 4 M", [(1000,)] * 4096)


def arrays(shapes: list[tuple[int, ...]], by: float) -> list[np.ndarray[Any, Any]]:
    """Gradients, seeded."""
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape, dtype=np.float32) * np.float32(by) for shape in shapes]


def jax_rows(threads: int, seconds: float, leaves: list[str]) -> Iterator[Row]:
    """optax against `steadygrad.jax`, donated and not, clipping and not."""
    import jax
    import optax

    import steadygrad.jax as sg

    makers = {
        "optax clip_by_global_norm": optax.clip_by_global_norm(LIMIT),
        "steadygrad clip, per-leaf norms": sg.clip(f"norm:{LIMIT}"),
        "steadygrad clip_by_global_norm": sg.clip_by_global_norm(LIMIT),
    }
    _compiled(jax, optax.clip_by_global_norm(LIMIT), [(8,)], np.float32, False)  # what loads once
    for key in leaves:
        name, shapes, target = LEAVES[key]
        for donated in (True, False):
            steps, compiling = [], []
            for tx in makers.values():
                step, took = _compiled(jax, tx, shapes(), np.float32, donated)
                steps.append((step, tx))
                compiling.append(took)
            how = f"jax, {'donated' if donated else 'kept'}"
            for active, by in ACTIVE.items():
                host = arrays(shapes(), by)
                cases = [_JaxCase(jax, step, tx, host, donated) for step, tx in steps]
                contenders = [
                    Contender(n, c.run, c.prepare, None if i == 0 else target)
                    for i, (n, c) in enumerate(zip(makers, cases, strict=True))
                ]
                best = best_of(contenders, seconds, least=3)
                yield from rows_of(threads, name, f"{how}, {active}", contenders, best)
            yield from _compile_rows(threads, name, f"{how}: compile", makers, compiling)
    import jax.numpy as jnp

    # optax alone takes minutes on these
    alone = dict(list(makers.items())[1:])
    seconds_ = [_compiled(jax, tx, MANY[1], jnp.bfloat16, False)[1] for tx in alone.values()]
    rows = [Contender(n, _nothing) for n in alone]
    yield from rows_of(threads, MANY[0], "jax, kept: compile", rows, seconds_)


def _nothing() -> None:
    """A row that was timed elsewhere."""


def _compile_rows(
    threads: int, name: str, case: str, names: Iterable[str], took: list[float]
) -> list[Row]:
    contenders = [
        Contender(n, _nothing, target=COMPILE_TARGET if i else None) for i, n in enumerate(names)
    ]
    return rows_of(threads, name, case, contenders, took)


def _compiled(
    jax: Any, tx: Any, shapes: list[tuple[int, ...]], dtype: Any, donated: bool
) -> tuple[Any, float]:
    """A compiled step and the seconds from trace to executable, with nothing in the caches."""
    given = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    state = jax.eval_shape(tx.init, given)
    jax.clear_caches()
    began = time.perf_counter()
    lowered = jax.jit(tx.update, donate_argnums=(0,) if donated else ()).lower(given, state)
    step = lowered.compile()
    return step, time.perf_counter() - began


class _JaxCase:
    """One jitted clip; a donated call needs new buffers each time, made outside of the timing."""

    def __init__(self, jax: Any, step: Any, tx: Any, host: Any, donated: bool) -> None:
        self._jax, self._step, self._host = jax, step, host
        self._given = None if donated else self._fresh()
        self._state = tx.init(host)
        self._out: Any = None

    def _fresh(self) -> Any:
        return self._jax.block_until_ready([self._jax.numpy.array(a) for a in self._host])

    def prepare(self) -> None:
        self._out = None
        self._ready = self._fresh() if self._given is None else self._given

    def run(self) -> None:
        self._out = self._jax.block_until_ready(self._step(self._ready, self._state))


def tensorflow_rows(threads: int, seconds: float, leaves: list[str]) -> Iterator[Row]:
    """TensorFlow against `steadygrad.tensorflow`, in a graph and under XLA."""
    cases = [(key, compiled) for key in leaves for compiled in (False, True)]
    for key, compiled in cases:  # before threads of TensorFlow here disturb the new processes
        firsts = [min(_alone(_tf_first_call, clip, key, compiled)) for clip in TF_CLIPS]
        case = f"{_tf_case(compiled)}: compile and first call"
        yield from _compile_rows(threads, LEAVES[key][0], case, TF_CLIPS, firsts)
    for key, compiled in cases:
        yield from _tf_step_rows(threads, seconds, key, compiled)


def _tf_case(compiled: bool) -> str:
    return f"tensorflow {'XLA' if compiled else 'graph'}"


def _tf_step_rows(threads: int, seconds: float, key: str, compiled: bool) -> Iterator[Row]:
    import tensorflow as tf

    name, shapes, target = LEAVES[key]
    steps = [_tf_step(clip, compiled) for clip in TF_CLIPS]
    for active, by in ACTIVE.items():
        tensors = [tf.constant(a) for a in arrays(shapes(), by)]
        contenders = [
            Contender(n, _tf_run(step, tensors), target=target if i else None)
            for i, (n, step) in enumerate(zip(TF_CLIPS, steps, strict=True))
        ]
        took = best_of(contenders, seconds, least=3)
        yield from rows_of(threads, name, f"{_tf_case(compiled)}, {active}", contenders, took)


def _tf_step(name: str, compiled: bool) -> Any:
    import tensorflow as tf

    import steadygrad.tensorflow as sg

    clip = dict(zip(TF_CLIPS, (tf.clip_by_global_norm, sg.clip_by_global_norm), strict=True))[name]
    return tf.function(lambda tensors: clip(tensors, LIMIT), jit_compile=compiled, autograph=False)


def _tf_first_call(name: str, key: str, compiled: bool) -> float:
    """Seconds of a step's first call."""
    import tensorflow as tf

    step = _tf_step(name, compiled)
    tensors = [tf.constant(a) for a in arrays(LEAVES[key][1](), ACTIVE["active"])]
    began = time.perf_counter()
    step(tensors)[1].numpy()
    return time.perf_counter() - began


def _alone(run: Callable[..., float], *given: Any, times: int = 3) -> list[float]:
    """What a function returns in a new process, several times."""
    new = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=new, max_tasks_per_child=1) as pool:
        return [pool.submit(run, *given).result() for _ in range(times)]


def _tf_run(step: Any, tensors: Any) -> Callable[[], object]:
    def run() -> object:
        return step(tensors)[1].numpy()

    return run


LIBRARIES = {"jax": jax_rows, "tensorflow": tensorflow_rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--library", choices=list(LIBRARIES), default="jax")
    parser.add_argument("--leaves", choices=list(LEAVES), nargs="+", default=list(LEAVES))
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    rows = LIBRARIES[args.library](args.threads, args.seconds, args.leaves)
    print(table(described(list(rows))))


if __name__ == "__main__":
    main()
