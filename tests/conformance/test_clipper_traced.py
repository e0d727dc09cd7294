"""torch's eager `Clipper` and the traced step of the other libraries are one algorithm.

The same float32 gradients go through both, step after step, with spikes, zeros, NaN and inf among
them; each keeps its own memory. TensorFlow traces the second into one graph for all methods, since
tracing is what takes the time.

Tolerances: what is left of a gradient is rounded once from float64, so that the two are at most a
float32 unit apart. Figures and memories are float64: the libraries differ in the order of sums and
in `log` and `exp`, a few ulp a step, which a threshold from a mean feeds back: 1e-9. Where single
elements are changed, the cosine is taken before that rounding by one and behind it by the other.
"""

import functools

import numpy as np
import pytest
import tensorflow as tf
import torch

from steadygrad.policies import REGISTRY, SkipSpike, parse
from steadygrad.policies.choice import Choice
from steadygrad.policies.in_numpy import NUMPY
from steadygrad.policies.stepping import StepGradients, step
from steadygrad.tensorflow.engine import TensorFlowEngine
from steadygrad.torch.gradients.batch import GradientBatch
from steadygrad.torch.step.clipper import Clipper
from steadygrad.vocabulary import ACTIONS

STEPS, NAMES, SHAPES = 70, ("a", "b"), ((4,), (3, 3))
UNIT = float(np.finfo(np.float32).eps)
SIZES = tuple(int(np.prod(shape)) for shape in SHAPES)

SPECS = [
    *(method.examples[-1] for method in REGISTRY.values()),
    "skip:after=10+norm:1.0",
    "{a: zclip:warmup=5, *: norm:0.3}",
]
CASES = {
    **{f"{spec} skip": (spec, "skip") for spec in SPECS},
    **{
        f"{spec} {mode}": (spec, mode)
        for spec, mode in (("norm:1.0", "zero"), ("tensor-norm:0.5", "propagate"))
    },
}
CHOICES = {name: Choice(parse(spec), mode) for name, (spec, mode) in CASES.items()}


def trajectory():
    """Gradients of every step, and the weights and second moments that methods read beside them."""
    rng = np.random.default_rng(0)
    sizes = rng.lognormal(-1.0, 0.4, STEPS)
    sizes[20] *= 50
    sizes[41] = 0
    sizes[50] *= 1e18
    sizes[60:66] *= 8
    grads = [[size * rng.standard_normal(shape) for shape in SHAPES] for size in sizes]
    grads[31][1][1, 1] = np.nan
    grads[40][0][2] = np.inf
    weights = [rng.standard_normal(shape).astype(np.float32) for shape in SHAPES]
    moments = [rng.random(shape).astype(np.float32) * 1e-4 for shape in SHAPES]
    return [[g.astype(np.float32) for g in step] for step in grads], weights, moments


def clipped_by_torch(choice):
    """Every step through a `Clipper`: what is left, figures, action and memory."""
    grads, weights, moments = trajectory()
    clipper, made = Clipper(choice.policy, choice.on_nonfinite), []
    for number, step_grads in enumerate(grads):
        params = [torch.nn.Parameter(torch.from_numpy(weight)) for weight in weights]
        state = {}
        for param, grad, moment in zip(params, step_grads, moments, strict=True):
            param.grad = torch.from_numpy(grad.copy())
            if number:  # an optimizer has no second moment before its first step
                state[param] = {"exp_avg_sq": torch.from_numpy(moment), "step": number}
        batch = GradientBatch([p.grad for p in params], params, NAMES, SIZES, state=state)
        with np.errstate(all="ignore"):  # as around every step of an engine
            outcome = clipper.process(batch, number)
        left = outcome.applied
        action = "skip" if outcome.skip else "clip" if left.clipped else "none"
        figures = [outcome.stats.total_norm, outcome.threshold, left.coef, left.cosine]
        after = [param.grad.numpy() for param in params]
        made.append((after, np.array(figures, np.float64), action, dict(clipper.memory.state)))
    return made


class ReadsOnce(TensorFlowEngine):
    """Reads the same gradients once for all methods: most of what is traced is reading."""

    def __init__(self):
        super().__init__()
        self._read = {}

    def figures(self, leaves, norm_type):
        key = (norm_type, *map(id, leaves))
        if key not in self._read:  # with the leaves, so that no id is used again
            self._read[key] = leaves, super().figures(leaves, norm_type)
        return self._read[key][1]


@functools.cache
def traced():
    """Every step of every case through the traced form, as `clipped_by_torch` gives it."""
    grads, weights, moments = trajectory()

    @functools.partial(tf.function, autograph=False)
    def one_step(states, leaves, number):
        beside = {
            "weight": [tf.constant(weight) for weight in weights],
            "second_moment": [tf.constant(moment) for moment in moments],
            "step": [number] * len(NAMES),
        }
        engine, given = ReadsOnce(), StepGradients(leaves, NAMES, beside)
        after, seen = {}, {}
        for name, choice in CHOICES.items():
            done = step(engine, choice, states[name], given, full=True)
            figures = tf.stack([done.stats.total_norm, done.threshold, done.coef, done.cosine])
            after[name], seen[name] = done.state, (done.leaves, figures, done.action)
        return after, seen

    states = {
        name: tf.nest.map_structure(
            tf.constant, choice.policy.init(NUMPY, NAMES, np.float64, np.int64)
        )
        for name, choice in CHOICES.items()
    }
    made = {name: [] for name in CASES}
    for number, leaves in enumerate(grads):
        states, seen = one_step(states, [tf.constant(x) for x in leaves], tf.constant(number))
        for name, (left, figures, action) in seen.items():
            memory = {key: value.numpy() for key, value in states[name].items()}
            left = [leaf.numpy() for leaf in left]
            made[name].append((left, figures.numpy(), ACTIONS[int(action)], memory))
    return made


@pytest.mark.parametrize("name", CASES)
@pytest.mark.xdist_group("clipper-traced")
def test_the_clipper_and_the_traced_step_agree(name):
    choice = CHOICES[name]
    tolerance = UNIT if choice.policy.elementwise else 1e-9
    pairs = zip(clipped_by_torch(choice), traced()[name], strict=True)
    for number, (eager, compiled) in enumerate(pairs):
        at = f"step {number}"
        left, figures, action, memory = eager
        assert compiled[2] == action, at
        np.testing.assert_allclose(compiled[1], figures, rtol=tolerance, err_msg=at)
        assert set(compiled[3]) == set(memory)
        for key, value in memory.items():
            np.testing.assert_allclose(compiled[3][key], value, rtol=1e-9, err_msg=f"{at}: {key}")
        if action != "skip":  # the gradients of a skipped step go nowhere
            for got, want in zip(compiled[0], left, strict=True):
                np.testing.assert_allclose(got, want, rtol=UNIT, err_msg=at)


@pytest.mark.xdist_group("clipper-traced")
def test_the_trajectory_makes_every_case_act():
    acting = {name: {action for *_, action, _ in steps} for name, steps in traced().items()}
    idle = {CASES[name][0] for name, actions in acting.items() if "clip" not in actions}
    assert idle == {"none", *SkipSpike.examples[-1:]}
    assert all("skip" in actions for name, actions in acting.items() if name.endswith(" skip"))
