"""Every method over NumPy, torch, TensorFlow (eager, graph, XLA) and JAX (jit): one trajectory.

NumPy in float64 is the oracle. Norms come with spikes, zeros, NaN, inf and huge values. All
methods run in one compiled step a library, because compiling is what takes the time.

Tolerances: float64 libraries differ in the order of sums and in `log` and `exp` (a few ulp a
step, which a threshold from a mean feeds back: 1e-9). JAX keeps its state in float32, so each
step rounds it at 6e-8; the methods forget within some 50 steps: 1e-5.
"""

import functools
import warnings

import array_api_compat.torch as torch_namespace
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
import torch

from steadygrad.jax._x64 import wide, widen
from steadygrad.policies import REGISTRY, Groups, examples, parse
from steadygrad.policies.base import NAMESPACE
from steadygrad.stats import GradientStats, combine_norms
from steadygrad.tensorflow import namespace as tf_namespace

STEPS, NAMES, SIZES = 70, ("a", "b", "c"), (4, 9, 1)

SPECS = [*examples(), "skip:after=10+norm:1.0"]
GROUPS = {"a": "zclip:warmup=5", "b": "none", "*": "norm:0.3"}


def policies():
    return {**{spec: parse(spec) for spec in SPECS}, "groups": Groups.of(GROUPS)}


def trajectory():
    rng = np.random.default_rng(0)
    norms = rng.lognormal(-0.5, 0.4, (STEPS, len(NAMES)))
    norms[20] *= 50
    norms[31, 1] = np.nan
    norms[40, 0] = np.inf
    norms[41] = 0
    norms[50] *= 1e18
    norms[60:66] *= 8
    return norms


def stats_of(xp, norms, p):
    bad = xp.logical_not(xp.isfinite(norms))
    counts = xp.where(bad, xp.ones_like(norms), xp.zeros_like(norms))
    finite = xp.where(bad, xp.zeros_like(norms), norms)
    total = combine_norms(xp, norms, p)
    return GradientStats(NAMES, norms, finite * 0.9, counts, counts * 0, SIZES, total, p)


def step(xp, states, norms):
    """All methods, one step: new states, and per method threshold, coefficients and skip."""
    after, seen = {}, {}
    for name, policy in policies().items():
        after[name], made = policy.decide(xp, states[name], stats_of(xp, norms, policy.norm_type))
        one = xp.ones_like(norms)
        false = norms < -1.0
        skip = false if made.skip is False else xp.logical_or(false, made.skip)
        seen[name] = (one * made.threshold, one * made.coef, skip)
    return after, seen


def initial(xp, float_dtype, int_dtype):
    return {n: p.init(xp, NAMES, float_dtype, int_dtype) for n, p in policies().items()}


def with_numpy():
    states, found = initial(np, np.float64, np.int64), []
    with np.errstate(all="ignore"):
        for norms in trajectory():
            states, seen = step(np, states, norms)
            found.append(seen)
    return found


def with_torch():
    states, found = initial(torch_namespace, torch.float64, torch.int64), []
    for norms in trajectory():
        states, seen = step(torch_namespace, states, torch.from_numpy(norms))
        found.append(seen)
    return found


def with_tensorflow(compiled):
    states = initial(tf_namespace, tf.float64, tf.int64)
    one_step = functools.partial(step, tf_namespace)
    if compiled is not None:
        one_step = tf.function(one_step, jit_compile=compiled, autograph=False)
    found = []
    for norms in trajectory():
        states, seen = one_step(states, tf.constant(norms))
        found.append(seen)
    return found


def with_jax():
    states, found = initial(jnp, jnp.float32, jnp.int32), []

    @jax.jit
    def one_step(states, norms):
        with wide():
            kinds = jax.tree.map(lambda x: x.dtype, states)
            floats = jnp.floating
            wider = jax.tree.map(
                lambda x: widen(x) if jnp.issubdtype(x.dtype, floats) else x, states
            )
            after, seen = step(jnp, wider, widen(norms))
            after = jax.tree.map(lambda x, kind: x.astype(kind), after, kinds)
            return after, jax.tree.map(lambda x: x.astype(jnp.float32), seen)

    for norms in trajectory():
        states, seen = one_step(states, norms.astype(np.float32))
        found.append(seen)
    return found


RUNS = {
    "torch": (with_torch, 1e-9),
    "tensorflow-eager": (lambda: with_tensorflow(None), 1e-9),
    "tensorflow-graph": (lambda: with_tensorflow(False), 1e-9),
    "tensorflow-xla": (lambda: with_tensorflow(True), 1e-9),
    "jax-jit": (with_jax, 1e-5),
}


@functools.cache
def run(library):
    made = with_numpy() if library == "numpy" else RUNS[library][0]()
    return [{k: tuple(np.asarray(x, np.float64) for x in v) for k, v in s.items()} for s in made]


@pytest.mark.parametrize("name", [*SPECS, "groups"])
@pytest.mark.parametrize("library", RUNS)
@pytest.mark.xdist_group("policies-everywhere")
def test_trajectories_agree(library, name):
    tolerance = RUNS[library][1]
    for number, (got, want) in enumerate(zip(run(library), run("numpy"), strict=True)):
        for what, a, b in zip(("threshold", "coef", "skip"), got[name], want[name], strict=True):
            np.testing.assert_allclose(
                a, b, rtol=tolerance, atol=1e-30, err_msg=f"step {number}: {what}"
            )


def test_the_trajectory_makes_methods_act():
    seen = run("numpy")
    acting = {n for s in seen for n, (_, coef, _) in s.items() if (coef < 1).any()}
    elementwise = {n for n, p in policies().items() if p.elementwise}
    skipping = {n for s in seen for n, (_, _, skip) in s.items() if skip.any()}
    assert acting | skipping == set(policies()) - elementwise - {"none"}
    assert all(method.examples for method in REGISTRY.values())


ELEMENTWISE = [n for n, p in policies().items() if p.elementwise]


@pytest.mark.parametrize("spec", ELEMENTWISE)
@pytest.mark.xdist_group("policies-everywhere")
def test_transforms_agree(spec):
    rng = np.random.default_rng(1)
    grad, weight = rng.standard_normal((2, 6, 5)) * [[[3.0]], [[1.0]]]
    beside = {"weight": weight, "second_moment": rng.random((6, 5)) * 0.1, "step": np.float64(500)}
    policy = parse(spec)
    given = {key: beside[key] for key in policy.needs}
    want = policy.transform(np, grad, **given)
    assert not np.array_equal(want, grad)

    def tensors(make):
        return make(grad), {key: make(value) for key, value in given.items()}

    g, rest = tensors(torch.as_tensor)
    found = [policy.transform(torch_namespace, g, **rest)]
    g, rest = tensors(tf.constant)
    found += [
        tf.function(functools.partial(policy.transform, tf_namespace), jit_compile=xla)(g, **rest)
        for xla in (False, True)
    ]
    with wide(), warnings.catch_warnings():
        g, rest = tensors(jnp.asarray)
        found.append(jax.jit(functools.partial(policy.transform, jnp))(g, **rest))
    for got in found:
        np.testing.assert_allclose(np.asarray(got), want, rtol=1e-12)


def test_the_tensorflow_namespace_is_exactly_what_policies_use():
    public = {n for n in vars(tf_namespace) if not n.startswith("_")}
    of_types = {"Callable", "Sequence", "TYPE_CHECKING", "TypeAlias", "TypeGuard", "annotations"}
    assert set(NAMESPACE) <= public
    assert public - set(NAMESPACE) == {*of_types, "np", "tf"}
