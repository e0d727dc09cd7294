"""What compiled steps tell is heard as a debug callback hears it, and costs them no start."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import serialize_executable

from steadygrad.jax import native
from steadygrad.launch.jax_script import telling
from steadygrad.launch.jax_script.losses import Losses

pytestmark = pytest.mark.skipif(native.queue() is None, reason="the C core does not serve here")

Say = Callable[[jax.Array], None]


@pytest.fixture
def heard() -> Iterator[list[float]]:
    telling.settle()
    yield []
    telling.settle()


def teller(heard: list[float]) -> Say:
    return lambda value: telling.tell(lambda what, _: heard.append(float(np.asarray(what))), value)


def caller(heard: list[float]) -> Say:
    return lambda value: jax.debug.callback(lambda what: heard.append(float(what)), value)


def doubled(say: Say) -> Callable[[jax.Array], jax.Array]:
    def step(x: jax.Array) -> jax.Array:
        say(x)
        return 2 * x

    return step


def in_branch(say: Say) -> None:
    step = jax.jit(lambda x: lax.cond(x > 2, doubled(say), lambda x: x, x))
    for x in (1.0, 3.0, 2.0, 4.0):
        step(x)


def in_loops(say: Say) -> None:
    step = doubled(say)
    jax.jit(lambda x: lax.scan(lambda x, _: (step(x), None), x, None, length=3)[0])(1.0)
    jax.jit(lambda x: lax.while_loop(lambda x: x < 50, step, x))(9.0)
    jax.jit(lambda x: lax.fori_loop(0, 3, lambda _, x: step(x), x))(0.5)


def mapped(say: Say) -> None:
    jax.vmap(jax.jit(doubled(say)))(jnp.arange(3.0))
    jax.vmap(lambda x: lax.scan(lambda x, _: (doubled(say)(x), None), x, None, 2)[0])(jnp.ones(2))


def differentiated(say: Say) -> None:
    step = doubled(say)
    jax.grad(jax.jit(step))(3.0)
    jax.jit(jax.grad(lambda x: jax.checkpoint(step)(jnp.sin(x))))(0.0)
    jax.jvp(jax.jit(step), (5.0,), (1.0,))
    jax.linearize(jax.jit(step), 6.0)


def unused(say: Say) -> None:
    jax.jit(lambda x: [doubled(say)(x), x][1])(7.0)


def evaluated(say: Say) -> None:
    jaxpr = jax.make_jaxpr(doubled(say))(jnp.float32(8.0))
    jax.core.eval_jaxpr(jaxpr.jaxpr, jaxpr.consts, jnp.float32(8.0))


def elsewhere(say: Say) -> None:
    thread = threading.Thread(target=lambda: jax.jit(doubled(say))(9.0).block_until_ready())
    thread.start()
    thread.join()
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("d",))
    whole = jax.sharding.PartitionSpec()
    jax.jit(jax.shard_map(doubled(say), mesh=mesh, in_specs=whole, out_specs=whole))(10.0)


@pytest.mark.parametrize(
    "use",
    [in_branch, in_loops, mapped, differentiated, unused, evaluated, elsewhere],
    ids=lambda use: use.__name__,
)
def test_it_is_heard_as_by_a_debug_callback(use: Callable[[Say], None], heard: list[float]) -> None:
    by_callback: list[float] = []
    use(caller(by_callback))
    use(teller(heard))
    telling.settle()
    assert heard == by_callback != []


def test_both_ways_together_keep_their_order(heard: list[float]) -> None:
    step = jax.jit(doubled(teller(heard)))
    for number in range(4):
        jax.block_until_ready(step(float(number)))
        later = 10.0 + number  # from another thread, so by a callback
        thread = threading.Thread(target=jax.jit(doubled(teller(heard))), args=(later,))
        thread.start()
        thread.join()
    telling.settle()
    assert heard == [0, 10, 1, 11, 2, 12, 3, 13]


def test_the_start_of_a_step_knows_of_no_effect(heard: list[float]) -> None:
    def runs_slowly(say: Say) -> bool:
        return (
            jax.jit(doubled(say)).lower(1.0).compile()._executable.unsafe_call.has_unordered_effects
        )

    assert not runs_slowly(teller(heard))
    assert runs_slowly(caller(heard))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "int32"])
def test_values_of_every_type_come_whole_and_with_their_time(dtype: str) -> None:
    came: list[tuple[np.ndarray, telling.Moment]] = []
    rows = jnp.arange(6).reshape(2, 3).astype(dtype)
    step = jax.jit(lambda x: telling.tell(lambda *what: came.append(what), x + 1))
    began = time.time()
    step(rows)
    jax.effects_barrier()
    ended = time.time()
    telling.settle()
    (value, moment), *others = came
    assert not others
    np.testing.assert_array_equal(np.asarray(value, np.float32), np.arange(1, 7).reshape(2, 3))
    assert began <= moment.time <= ended + 60


def test_steps_that_nobody_holds_any_more_are_waited_for(heard: list[float]) -> None:
    rows = jnp.ones((400, 400)) / 400

    @jax.jit
    def step(x: jax.Array, number: jax.Array) -> jax.Array:
        for _ in range(12):
            x = jnp.tanh(x @ rows)
        teller(heard)(number + 0 * x[0, 0])
        return x

    jax.block_until_ready(step(rows, 0.0))
    for number in range(1, 9):
        step(rows, float(number))
    telling.settle()
    assert heard == list(range(9))


def test_a_full_queue_waits_for_its_reader() -> None:
    sums: list[float] = []

    def body(number: jax.Array, _: None) -> tuple[jax.Array, None]:
        row = jnp.full(1 << 20, number, jnp.uint32)
        telling.tell(lambda what, _: sums.append(float(np.asarray(what).mean())), row)
        return number + 1, None

    jax.jit(lambda: lax.scan(body, jnp.uint32(0), None, length=12)[0])().block_until_ready()
    telling.settle()
    assert sums == list(range(12))
    assert telling.lost() == 0


def test_losses_of_eager_code_belong_to_the_step_before_which_they_came() -> None:
    losses = Losses()
    losses._arrived = [(1.0, 0), (2.0, 1), (4.0, 2)]
    assert losses.since(0) == 1.0
    assert losses.since() == 3.0


def test_a_fork_hears_nothing_of_its_parents_steps(
    heard: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    jax.jit(doubled(teller(heard)))(1.0).block_until_ready()
    with telling.MAIL._lock:
        before = list(heard)
        telling.MAIL._forked()
    monkeypatch.setattr(jax, "live_arrays", lambda: pytest.fail("the parent's may never come"))
    telling.settle()
    monkeypatch.undo()
    telling.MAIL.inherited = False
    assert heard == before


def test_a_step_is_not_saved_for_processes_that_could_not_hear_it(heard: list[float]) -> None:
    compiled = jax.jit(doubled(teller(heard))).lower(1.0).compile()
    with pytest.raises(TypeError, match="save it without `run`"):
        serialize_executable.serialize(compiled)
