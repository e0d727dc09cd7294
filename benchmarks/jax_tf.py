"""Clipping in JAX and TensorFlow: against optax's and TensorFlow's own global-norm clip.

    python -m benchmarks.jax_tf [--library jax|tensorflow] [--seconds 4] [--leaves gpt2|small|many]

Both libraries compile; how long that takes is a row of its own (``compile``, in ms).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from benchmarks.rows import Row, described, rows_of, table
from benchmarks.timing import Contender, best_of

FAR, NEAR = 1e9, 1e-2
"""Thresholds that nothing and everything reaches."""


def gpt2_small() -> list[tuple[int, ...]]:
    """The 148 parameters of GPT-2 small."""
    block = [(768,), (768,), (768, 2304), (2304,), (768, 768), (768,), (768,), (768,)]
    block += [(768, 3072), (3072,), (3072, 768), (768,)]
    return [(50257, 768), (1024, 768), *(block * 12), (768,), (768,)]


LEAVES: dict[str, tuple[str, Callable[[], list[tuple[int, ...]]], float]] = {
    "gpt2": ("GPT-2 small, 148 leaves, 124 M", gpt2_small, 1.0),
    "small": ("1000 small leaves, 2 M", lambda: [(2000,)] * 1000, 1.2),
    "many": ("4096 bfloat16 leaves, 4 M", lambda: [(1000,)] * 4096, 1.2),
}


def arrays(shapes: list[tuple[int, ...]]) -> list[np.ndarray[Any, Any]]:
    """Gradients, seeded."""
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape, dtype=np.float32) * np.float32(1e-3) for shape in shapes]


def jax_rows(threads: int, seconds: float, leaves: str = "gpt2") -> list[Row]:
    """optax against `steadygrad.jax`, donated and not, clipping and not."""
    import jax
    import jax.numpy as jnp
    import optax

    import steadygrad.jax as sg

    name, shapes, target = LEAVES[leaves]
    dtype = jnp.bfloat16 if leaves == "many" else jnp.float32
    host = [a.astype(dtype) for a in arrays(shapes())]
    rows: list[Row] = []
    for donated in (True, False):
        for limit in (NEAR, FAR):
            makers = {
                "optax clip_by_global_norm": optax.clip_by_global_norm(limit),
                "steadygrad clip, per-leaf norms": sg.clip(f"norm:{limit}"),
                "steadygrad clip_by_global_norm": sg.clip_by_global_norm(limit),
            }
            case = (
                f"jax {'donated' if donated else 'kept'}, {'active' if limit < 1 else 'inactive'}"
            )
            compiled, compiling = [], []
            for tx in makers.values():
                given = [jnp.asarray(a) for a in host]
                state = tx.init(given)
                step = jax.jit(tx.update, donate_argnums=(0,) if donated else ())
                began = time.perf_counter()
                step.lower(given, state).compile()
                compiling.append(time.perf_counter() - began)
                compiled.append(partial(_JaxCase, jax, step, state, host, donated))
            contenders = [
                case_of(n) for n, case_of in zip(makers, _named(compiled, target), strict=True)
            ]
            rows += rows_of(threads, name, case, contenders, best_of(contenders, seconds))
            plain = [Contender(n, lambda: None, target=2.0) for n in makers]
            rows += rows_of(threads, name, f"{case}: compile", plain, compiling)
    return rows


class _JaxCase:
    """One jitted clip; a donated call needs new buffers each time, made outside of the timing."""

    def __init__(self, jax: Any, step: Any, state: Any, host: Any, donated: bool) -> None:
        self._jax, self._step, self._state, self._host = jax, step, state, host
        self._given = None if donated else self._fresh()

    def _fresh(self) -> Any:
        return self._jax.block_until_ready([self._jax.numpy.array(a) for a in self._host])

    def prepare(self) -> None:
        self._ready = self._fresh() if self._given is None else self._given

    def run(self) -> None:
        self._jax.block_until_ready(self._step(self._ready, self._state))


def _named(makers: list[Any], target: float) -> Iterator[Callable[[str], Contender]]:
    for number, make in enumerate(makers):
        made = make()

        def contender(name: str, made: Any = made, number: int = number) -> Contender:
            return Contender(name, made.run, made.prepare, target if number else None)

        yield contender


def tensorflow_rows(threads: int, seconds: float, leaves: str = "gpt2") -> list[Row]:
    """TensorFlow against `steadygrad.tensorflow`, in a graph and under XLA."""
    import tensorflow as tf

    import steadygrad.tensorflow as sg

    name, shapes, target = LEAVES[leaves]
    given = [tf.constant(a) for a in arrays(shapes())]
    rows: list[Row] = []
    for compiled in (False, True):
        for limit in (NEAR, FAR):
            contenders = []
            for who, clip in (
                ("tensorflow", tf.clip_by_global_norm),
                ("steadygrad", sg.clip_by_global_norm),
            ):
                step = tf.function(
                    partial(clip, clip_norm=limit), jit_compile=compiled, autograph=False
                )
                goal = target if who == "steadygrad" else None
                contenders.append(
                    Contender(f"{who} clip_by_global_norm", partial(step, given), target=goal)
                )
            mode = "XLA" if compiled else "graph"
            case = f"tensorflow {mode}, {'active' if limit < 1 else 'inactive'}"
            rows += rows_of(threads, name, case, contenders, best_of(contenders, seconds))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--library", choices=["jax", "tensorflow"], default="jax")
    parser.add_argument("--leaves", choices=list(LEAVES), default="gpt2")
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    rows = jax_rows if args.library == "jax" else tensorflow_rows
    print(table(described(rows(args.threads, args.seconds, args.leaves))))


if __name__ == "__main__":
    main()
