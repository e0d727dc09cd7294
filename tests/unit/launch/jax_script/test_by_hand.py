"""Clips that a JAX script has written itself are understood from the traced code."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.flatten_util import ravel_pytree

from steadygrad.launch.jax_script.by_hand import ClippedByHand, clipped_by_hand

pytestmark = pytest.mark.filterwarnings("ignore:optax.global_norm:DeprecationWarning")

each = jax.tree.map
Clip = Callable[[Any], Any]


def rooted(g: Any, power: Clip) -> jax.Array:
    return jnp.sqrt(sum(jnp.sum(power(leaf)) for leaf in jax.tree.leaves(g)))


def scaled(g: Any) -> Any:
    factor = jnp.minimum(1.0, 0.1 / (optax.global_norm(g) + 1e-6))
    return each(lambda leaf: leaf * factor, g)


def chosen(g: Any) -> Any:
    norm = rooted(g, jnp.square)
    return each(lambda leaf: jnp.where(norm < 1.5, leaf, leaf / norm * 1.5), g)


def divided(g: Any) -> Any:
    norm = jnp.sqrt(sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(g)))
    return each(lambda leaf: leaf / jnp.maximum(1, norm / 2), g)


def raveled(g: Any) -> Any:
    factor = jnp.clip(0.7 / jnp.linalg.norm(ravel_pytree(g)[0]), max=1)
    return each(lambda leaf: leaf * factor, g)


def branched(g: Any) -> Any:
    norm = rooted(g, lambda leaf: leaf**2)
    return jax.lax.cond(norm > 1, lambda g: each(lambda leaf: leaf / norm, g), lambda g: g, g)


def guarded(g: Any) -> Any:
    norm = rooted(g, lambda leaf: leaf * leaf)
    factor = jnp.where(jnp.isfinite(norm), jnp.minimum(norm, 3.0) / norm, 0.0)
    return each(lambda leaf: (leaf.astype("float32") * factor).astype(leaf.dtype), g)


def inverse(g: Any) -> Any:
    factor = 0.5 * jax.lax.rsqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(g)))
    return each(lambda leaf: leaf * jnp.minimum(factor, 1), g)


def bounded(g: Any) -> Any:
    return each(lambda leaf: jnp.maximum(jnp.minimum(leaf, 0.5), -0.5), g)


def anew(g: Any) -> Any:
    return each(lambda leaf: leaf * jnp.minimum(1, 0.2 / rooted(g, jnp.square)), g)


def single(g: Any) -> Any:
    return each(lambda leaf: leaf * jnp.minimum(1, 0.3 / jnp.linalg.norm(leaf)), g)


def before_and_after(
    clip: Clip, known: bool = False
) -> tuple[ClippedByHand | None, list[jax.Array]]:
    """What is found behind the gradients that a clip has left, and these before it."""
    seen: list[tuple[ClippedByHand | None, list[jax.Array]]] = []

    def step(p: Any) -> Any:
        def loss(p: Any) -> jax.Array:
            return jnp.mean((jnp.tanh(p["w"] + p["b"]) @ p["v"] * p["s"]) ** 2)

        g = jax.jit(jax.grad(loss))(p)
        leaves = jax.tree.leaves(g)
        ids = set(map(id, leaves)) if known else ()
        found = clipped_by_hand(jax.tree.leaves(clip(g)), lambda value: id(value) in ids)
        seen.append((found, leaves))
        return g

    p = {"w": jnp.ones((3, 4)), "b": jnp.ones(4), "v": jnp.ones((4, 2)), "s": jnp.array(2.0)}
    jax.make_jaxpr(step)(p)
    return seen[0]


@pytest.mark.parametrize(
    ("clip", "kind", "limit"),
    [(scaled, "norm", 0.1), (jax.jit(scaled), "norm", 0.1), (chosen, "norm", 1.5),
     (divided, "norm", 2.0), (raveled, "norm", 0.7), (branched, "norm", 1.0),
     (guarded, "norm", 3.0), (inverse, "norm", 0.5), (anew, "norm", 0.2), (bounded, "value", 0.5),
     (lambda g: each(lambda leaf: jnp.clip(leaf, -1, 1), g), "value", 1.0),
     (single, "tensor", 0.3)],
)  # fmt: skip
def test_a_clip_is_known_by_what_it_computes(clip: Clip, kind: str, limit: float) -> None:
    found, gradients = before_and_after(clip)
    assert found is not None
    assert [a is b for a, b in zip(found.before, gradients, strict=True)] == [True] * 4
    (one,) = found.clips
    assert (one.kind, one.limit, one.places) == (kind, limit, (0, 1, 2, 3))
    assert one.whole == (kind != "tensor")


def test_what_only_the_running_code_knows_has_no_threshold() -> None:
    def adapting(g: Any) -> Any:
        factor = jnp.minimum(1.0, jnp.abs(g["s"]) / optax.global_norm(g))
        return each(lambda leaf: leaf * factor, g)

    def to_unit(g: Any) -> Any:
        return each(lambda leaf: leaf / optax.global_norm(g), g)

    def by_trust(g: Any) -> Any:
        weights = each(lambda leaf: jnp.cumsum(jnp.ones(leaf.size)).reshape(leaf.shape), g)
        return each(lambda leaf, w: leaf * (jnp.linalg.norm(w) / jnp.linalg.norm(leaf)), g, weights)

    for clip in (
        adapting,
        to_unit,
        by_trust,
        lambda g: each(lambda leaf: jnp.clip(leaf, -1, 2), g),
    ):
        found, gradients = before_and_after(clip)
        assert found is not None
        pairs = zip(found.before, gradients, strict=True)
        assert [a is b for a, b in pairs] == [True, clip is not by_trust, True, True]
        assert all(math.isnan(one.limit) for one in found.clips)


def test_what_comes_behind_a_clip_hides_it_where_gradients_are_not_known() -> None:
    def decayed(g: Any) -> Any:
        weights = each(lambda leaf: jnp.cumsum(jnp.ones(leaf.size)).reshape(leaf.shape), g)
        return each(lambda leaf, w: leaf + 0.1 * w, scaled(g), weights)

    found, gradients = before_and_after(decayed, known=True)
    assert found is not None
    assert [a is b for a, b in zip(found.before, gradients, strict=True)] == [True] * 4
    assert math.isnan(found.clips[0].limit)
    assert before_and_after(decayed)[0] is None


def test_of_several_norms_it_is_not_known_which_is_the_step_s() -> None:
    def of_micro_batches(g: Any) -> Any:  # each clipped by itself, and their mean
        other = scaled(each(lambda leaf: jnp.cumsum(leaf.ravel()).reshape(leaf.shape), g))
        return each(lambda one, two: (one + two) / 2, scaled(g), other)

    assert before_and_after(of_micro_batches, known=True)[0] is None


def test_other_work_on_gradients_is_no_clip() -> None:
    def dropped(g: Any) -> Any:
        finite = jnp.isfinite(optax.global_norm(g))
        return each(lambda leaf: jnp.where(finite, leaf, 0), g)

    def decayed(g: Any) -> Any:
        return each(lambda leaf: 0.5 * leaf + 0.1, g)

    def penalised(g: Any) -> Any:  # by the length of weights, which are no gradients
        weights = each(jnp.ones_like, g)
        noise = each(lambda leaf: jnp.cumsum(leaf.ravel()).reshape(leaf.shape), weights)
        return each(lambda leaf, w: leaf + 0.1 * w / jnp.linalg.norm(w), g, noise)

    for work in (lambda g: g, dropped, decayed, penalised):
        assert before_and_after(work)[0] is None
    assert clipped_by_hand([jnp.ones(3)]) is None  # nothing is traced
