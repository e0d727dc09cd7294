"""Which loss a step has, where several are differentiated before the first is taken."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steadygrad.launch.jax_script import telling
from steadygrad.launch.jax_script.internals import current_trace
from steadygrad.launch.jax_script.losses import Losses


@pytest.mark.parametrize("compiled", [False, True])
def test_each_step_has_the_loss_of_its_own_gradients(compiled: bool) -> None:
    losses = Losses()
    losses.wanted = True
    value_and_grad = losses.watch(jax.value_and_grad)

    def step(x: jax.Array) -> list[jax.Array]:
        made = [
            value_and_grad(lambda v, by=by: by * jnp.sum(v["w"] ** 2))({"w": x})
            for by in (1.0, 2.0)
        ]
        assert all(losses.is_gradient(g["w"]) for _, g in made)
        found = [losses.here(current_trace(), jax.tree.leaves(g)) for _, g in made]
        assert not losses.is_gradient(-made[0][1]["w"])
        assert [one is loss for one, (loss, _) in zip(found, made, strict=True)] == [True, True]
        scaled = jax.tree.leaves(jax.tree.map(lambda leaf: 0.5 * leaf, made[0][1]))
        latest = losses.here(current_trace(), scaled)  # no longer known: the latest
        assert latest is (made[1][0] if compiled else None)
        return found

    assert [float(x) for x in (jax.jit(step) if compiled else step)(jnp.ones(3))] == [3.0, 6.0]


class Arrived:
    """What a callback is handed, of which nothing but the number may be asked."""

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        return np.array(-3.0, np.float32)

    @property
    def real(self) -> float:
        raise AssertionError("an operation of JAX in a callback could wait for ever")


def test_a_loss_that_arrives_is_read_without_an_operation_of_jax(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    losses, callbacks = Losses(), []
    losses.wanted = True
    monkeypatch.setattr(telling, "_way", lambda value: None)  # with a release of JAX to come
    monkeypatch.setattr(jax.debug, "callback", lambda call, *_: callbacks.append(call))
    jax.make_jaxpr(losses.watch(jax.value_and_grad)(lambda x: x**2))(3.0)
    callbacks[0](Arrived())
    assert losses.since() == -3.0
