"""Which gradients of a compiled step are read as they are."""

import jax
import jax.numpy as jnp
import pytest

from steadygrad.launch.jax_script.internals import is_product
from steadygrad.launch.jax_script.rows import row_of

WIDE = 160


def loss(weights, rows, decay=0.0):
    hidden = jnp.ones((rows, WIDE))
    for weight in weights:
        hidden = jnp.tanh(hidden @ weight)
    return hidden.sum() + (decay * sum(jnp.sum(w**2) for w in weights) if decay else 0.0)


def test_products_are_known_from_the_trace():
    def products(rows, decay):
        return [is_product(g) for g in jax.grad(loss)([jnp.ones((WIDE, WIDE))] * 2, rows, decay)]

    def traced(rows, decay=0.0):
        found = []
        jax.make_jaxpr(lambda: found.extend(products(rows, decay)) or 0)()
        return found

    assert traced(2) == [True, True]
    assert traced(1) == [False, False]  # no sum: XLA multiplies, and fuses that
    assert traced(2, decay=0.1) == [False, False]
    assert not is_product(jnp.ones((2, 2)))


@pytest.mark.parametrize(("decay", "made"), [(0.0, 0), (0.1, 6)])
def test_magnitudes_are_not_made_of_large_products(decay, made):
    def step(weights):
        return row_of(jax.grad(loss)(weights, 2, decay), [], {}, "nothing")

    weights = [jax.ShapeDtypeStruct((WIDE, WIDE), jnp.float32)] * 6
    assert str(jax.make_jaxpr(step)(weights)).count("] = abs ") == made
