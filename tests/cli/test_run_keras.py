"""A Keras script under `steadygrad run` trains as it would have, and its steps are on record."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import steadygrad
from steadygrad.runlog import Run

from ..workbench import Forks, Workbench

pytestmark = pytest.mark.timeout(600)  # each test starts frameworks twice or more

TF_KERAS = """
from types import SimpleNamespace
import tensorflow as tf

class Optimizer:
    clipnorm = clipvalue = None

    def __init__(self, learning_rate, global_clipnorm):
        self.learning_rate, self.global_clipnorm = learning_rate, global_clipnorm

    def apply_gradients(self, grads_and_vars):
        gradients, variables = zip(*grads_and_vars)
        if self.global_clipnorm:
            gradients, _ = tf.clip_by_global_norm(gradients, self.global_clipnorm)
        for gradient, variable in zip(gradients, variables):
            variable.assign_sub(self.learning_rate * gradient)

class SGD(Optimizer):
    pass

class Base:
    dynamic = True

class LossScaleOptimizerV3(Base):
    def __init__(self, inner):
        self.inner_optimizer, self._scale = inner, tf.Variable(1024.0, trainable=False)

    @property
    def loss_scale(self):
        return tf.convert_to_tensor(self._scale)

    def get_scaled_loss(self, loss):
        return loss * self.loss_scale

    def get_unscaled_gradients(self, gradients):
        return [gradient / self.loss_scale for gradient in gradients]

    def apply_gradients(self, grads_and_vars):
        pairs = list(grads_and_vars)
        finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(g)) for g, _ in pairs])

        def apply():
            self.inner_optimizer.apply_gradients(pairs)
            return tf.constant(0)

        def drop():
            self._scale.assign(self._scale / 2)
            return tf.constant(0)

        tf.cond(finite, apply, drop)

optimizers = SimpleNamespace(Optimizer=Optimizer, legacy=SimpleNamespace(Optimizer=SGD))
mixed_precision = SimpleNamespace(LossScaleOptimizer=Base)
"""
"""What `steadygrad run` touches of tf_keras, which is not among the packages of the tests."""

TRAIN = """
import hashlib, os, sys
os.environ["KERAS_BACKEND"] = sys.argv[1]
import numpy as np
import keras

def hashed(model):
    weights = b"".join(np.asarray(w).tobytes() for w in model.get_weights())
    return hashlib.sha256(weights).hexdigest()

keras.utils.set_random_seed(0)
x = np.random.randn(64, 5, 4).astype("float32")
y = np.random.randn(64, 1).astype("float32")
model = keras.Sequential([
    keras.Input((5, 4)), keras.layers.LSTM(8), keras.layers.Dropout(0.3), keras.layers.Dense(1),
])
model.compile(optimizer=keras.optimizers.Adam(1e-2), loss="mse", jit_compile=sys.argv[1] == "jax")
model.fit(x, y, epochs=2, batch_size=16, verbose=0)
if sys.argv[1] == "tensorflow":
    import tensorflow as tf
    sgd = keras.optimizers.SGD(0.1)

    @tf.function
    def step(a, b):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(a, training=True) - b) ** 2)
        grads = tape.gradient(loss, model.trainable_variables)
        sgd.apply_gradients(zip(grads, model.trainable_variables))
        return loss, tf.linalg.global_norm(grads)

    for start in range(0, 64, 16):
        print(*(float(figure) for figure in step(x[start:start + 16], y[start:start + 16])))
    import tf_keras
    weight = tf.Variable(tf.ones([4, 1]))
    scaler = tf_keras.LossScaleOptimizerV3(tf_keras.SGD(0.01, global_clipnorm=0.5))

    @tf.function
    def scaled(a, b):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((a @ weight - b) ** 2)
            big = scaler.get_scaled_loss(loss)
        grads = scaler.get_unscaled_gradients(tape.gradient(big, [weight]))
        scaler.apply_gradients(zip(grads, [weight]))
        return loss

    for factor in (1, 2, np.inf, 3):
        a, b, w = factor * np.abs(x[:16, 0]), y[:16], weight.numpy().astype(float)
        norm = np.linalg.norm(2 * a.astype(float).T @ (a @ w - b) / 16)
        print(float(scaled(a, b)), norm)

    @tf.function
    def clipping(a, b):  # scaled gradients are clipped
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((a @ weight - b) ** 2)
            big = scaler.get_scaled_loss(loss)
        grads, _ = tf.clip_by_global_norm(tape.gradient(big, [weight]), 0.25 * scaler.loss_scale)
        scaler.apply_gradients(zip(scaler.get_unscaled_gradients(grads), [weight]))
        return loss

    a, w = np.abs(x[:16, 0]), weight.numpy().astype(float)
    norm = np.linalg.norm(2 * a.astype(float).T @ (a @ w - y[:16]) / 16)
    print(float(clipping(a, y[:16])), norm)
    print(weight.numpy().tobytes().hex())
print(len(model.optimizer.variables), hashed(model))
model.save("model.keras")

class ByTape(keras.Model):
    def train_step(self, data):
        import tensorflow as tf

        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(y=y, y_pred=self(x, training=True))
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables))
        for metric in self.metrics:
            metric.update_state(loss)
        return {metric.name: metric.result() for metric in self.metrics}

class Stateless(keras.Model):  # as in the guide of Keras
    def loss_and_updates(self, trainable, others, x, y, training=False):
        y_pred, others = self.stateless_call(trainable, others, x, training=training)
        return self.compute_loss(x, y, y_pred), (y_pred, others)

    def train_step(self, state, data):
        import jax

        trainable, others, slots, metrics = state
        x, y = data
        (loss, (y_pred, others)), gradients = jax.value_and_grad(
            self.loss_and_updates, has_aux=True
        )(trainable, others, x, y, training=True)
        trainable, slots = self.optimizer.stateless_apply(slots, gradients, trainable)
        return {"loss": loss}, (trainable, others, slots, metrics)

ends = keras.Input((5, 4))
flat = keras.layers.Dense(8, activation="tanh")(keras.layers.Flatten()(ends))
inner = keras.layers.Dropout(0.3)(flat)
kind = ByTape if sys.argv[1] == "tensorflow" else Stateless
model = kind(ends, keras.layers.Dense(1)(inner))
model.compile(optimizer=keras.optimizers.RMSprop(1e-2), loss="mse")
told = []
each = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: told.append(logs))
model.fit(x, y, epochs=2, batch_size=16, verbose=0, callbacks=[each])
print(*(float(logs["loss"]) for logs in told))
print(hashed(model))
"""


@pytest.fixture(scope="module", params=["tensorflow", "jax"])
def trained(request: Any, workbench: Any, once: Any) -> tuple[str, Any, Any, Run]:
    """The backend, the script trained plainly and observed, and the run file of that."""

    def train(folder: Path) -> tuple[Any, Any, str]:
        bench = workbench(folder)
        bench.write("train.py", TRAIN)
        bench.write("tf_keras.py", TF_KERAS)
        plain = bench.python("train.py", request.param)
        observed = bench.steadygrad("run", "--out", "run.db", "train.py", request.param)
        return plain, observed, bench.run_file()

    plain, observed, path = once(f"keras-{request.param}", train)
    return request.param, plain, observed, steadygrad.open_run(path)


def test_a_keras_script_is_observed_and_unchanged(trained: Any) -> None:
    backend, plain, observed, run = trained
    assert plain.returncode == 0, plain.stderr
    assert (observed.stdout, observed.returncode) == (plain.stdout, 0)
    assert "Next: steadygrad report run.db" in observed.stderr
    assert "What observing cost is not known" in observed.stderr
    assert np.isnan(run.info["overhead_seconds"])
    assert "troubles" not in run.info
    assert (run.info["framework"], run.info["backend"]) == ("keras", backend)
    assert {"keras", backend, "numpy"} <= set(run.info["versions"])
    fitted = run.steps[run.steps["optimizer"] == 0]
    assert fitted["step"].tolist() == list(range(8))
    assert np.isfinite(fitted["loss"]).all()
    assert (fitted["norm"] > 0).all()
    assert fitted["lr"].tolist() == pytest.approx([0.01] * 8)
    assert any(tensor.name.endswith("recurrent_kernel") for tensor in run.tensors)
    if backend == "tensorflow":
        by_tape = run.steps[run.steps["optimizer"] == 1]
        said = np.array([line.split() for line in plain.stdout.splitlines()[:4]], float)
        np.testing.assert_allclose(by_tape["loss"], said[:, 0], rtol=1e-6)
        np.testing.assert_allclose(by_tape["norm"], said[:, 1], rtol=1e-5)
        of_keras_2 = run.steps[run.steps["optimizer"] == 2]
        said = np.array([line.split() for line in plain.stdout.splitlines()[4:9]], float)
        np.testing.assert_allclose(of_keras_2["loss"], said[:, 0], rtol=1e-6)
        assert not np.isfinite(of_keras_2["norm"][2])
        assert list(of_keras_2["action"]) == ["clip", "clip", "skip", "clip", "clip"]
        assert of_keras_2["loss_scale"].tolist() == [1024.0, 1024.0, 1024.0, 512.0, 512.0]
        applied, limits = of_keras_2[[0, 1, 3, 4]], np.array([0.5, 0.5, 0.5, 0.25])
        np.testing.assert_allclose(applied["norm"], said[[0, 1, 3, 4], 1], rtol=1e-5)
        np.testing.assert_allclose(applied["coef"], limits / said[[0, 1, 3, 4], 1], rtol=1e-5)
        np.testing.assert_allclose(applied["threshold"], limits)


def test_a_train_step_of_ones_own_is_observed_and_unchanged(trained: Any) -> None:
    backend, plain, observed, run = trained
    *_, told, after = plain.stdout.splitlines()
    assert observed.stdout.splitlines()[-1] == after
    assert [o["class"] for o in run.info["optimizers"]][-1] == "RMSprop"
    own = run.steps[run.steps["optimizer"] == len(run.info["optimizers"]) - 1]
    assert own["step"].tolist() == list(range(8))
    assert (own["norm"] > 0).all()
    losses = np.array(told.split(), float)
    if backend == "tensorflow":  # what it logs is a mean since the epoch began
        losses = np.diff(losses.reshape(2, 4) * np.arange(1, 5), prepend=0).ravel()
    np.testing.assert_allclose(own["loss"], losses, rtol=1e-5)
    steps, deviations = run.samples("weight_std")
    last = run.tensors[-1].name
    assert last.startswith("dense"), last
    assert steps[np.isfinite(deviations[:, -1])].tolist() == [0, 1, 2, 4, 8]


BY_TORCH = """
import os
os.environ["KERAS_BACKEND"] = "torch"
import keras, torch

keras.utils.set_random_seed(0)
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "tanh"), keras.layers.Dense(1)])
optimizer = keras.optimizers.SGD(1e-3)
x = torch.randn(64, 4)
for _ in range(5):
    model.zero_grad()
    loss = ((model(x) - 10 * x[:, :1]) ** 2).mean()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    weights = model.trainable_weights
    with torch.no_grad():
        optimizer.apply([weight.value.grad for weight in weights], weights)
    print(float(loss), float(norm), float(sum(w.value.sum() for w in weights)))
"""


BY_HAND_ON_JAX = """
import os
os.environ["KERAS_BACKEND"] = "jax"
import keras, jax, jax.numpy as jnp

keras.utils.set_random_seed(0)
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "tanh"), keras.layers.Dense(1)])
x = keras.random.normal((64, 4))

def loss(weights):
    return jnp.mean((model.stateless_call(weights, [], x)[0] - 10 * x[:, :1]) ** 2)

def root(grads): return jnp.sqrt(sum(jnp.sum(g**2) for g in grads))
def whole(grads): return [g * jnp.minimum(1.0, 0.5 / root(grads)) for g in grads]
def elements(grads): return [jnp.clip(g, -0.5, 0.5) for g in grads]
for clip in whole, elements:
    optimizer = keras.optimizers.Adam(1e-2)
    optimizer.build(model.trainable_variables)

    @jax.jit
    def step(weights, state):
        grads = jax.grad(loss)(weights)
        return *optimizer.stateless_apply(state, clip(grads), weights), grads

    weights, state = ([v.value for v in one.variables] for one in (model, optimizer))
    for _ in range(3):
        weights, state, grads = step(weights, state)
        print(float(root(grads)), float(root(clip(grads))), float(root(weights)))
"""


def test_a_clip_by_hand_before_a_step_of_keras_on_jax_is_seen(bench: Workbench) -> None:
    bench.write("train.py", BY_HAND_ON_JAX)
    plain, observed = bench.both("train.py")
    assert plain.returncode == 0, plain.stderr
    assert observed.stdout == plain.stdout
    run = steadygrad.open_run(bench.run_file())
    said = np.array([line.split() for line in plain.stdout.splitlines()], float)
    np.testing.assert_allclose(run.steps.norm, said[:, 0], rtol=1e-6)
    np.testing.assert_allclose(run.steps.coef, said[:, 1] / said[:, 0], rtol=1e-3)
    assert run.steps.threshold.tolist() == [0.5] * 6
    by_value = {(call["optimizer"], call["by_value"]) for call in run.info["clip_calls"]}
    assert by_value == {(0, False), (1, True)}
    done = bench.steadygrad("run", "-q", "--clip", "norm:0.3", "--out", "other.db", "train.py")
    other = steadygrad.open_run(bench.run_file("other.db"))
    assert other.steps.norm[0] == pytest.approx(said[0, 0], rel=1e-6), done.stderr
    assert other.info["troubles"] == ["the script's own clip by hand was replaced by --clip"]


REFUSED = """
import traceback

def told(act):
    try:
        act()
    except ValueError:
        print(traceback.format_exc())

model.compile(optimizer, "mse", steps_per_execution=2)
told(lambda: model.fit(x, x[:, :1], verbose=0))
told(lambda: optimizer.apply([x]))
"""


def test_a_clip_by_torch_before_a_step_of_keras_is_seen(forked: Workbench) -> None:
    forked.write("train.py", BY_TORCH + REFUSED)
    plain, observed = forked.both("train.py")
    assert plain.returncode == 0, plain.stderr
    assert observed.stdout == plain.stdout
    run = steadygrad.open_run(forked.run_file())
    assert plain.stdout.count("Traceback") == 2
    assert "troubles" not in run.info
    said = np.array([line.split() for line in plain.stdout.splitlines()[:5]], float)
    np.testing.assert_allclose(run.steps.loss, said[:, 0], rtol=1e-6)
    np.testing.assert_allclose(run.steps.norm, said[:, 1], rtol=1e-6)
    np.testing.assert_allclose(run.steps.coef, 0.5 / said[:, 1], rtol=1e-5)
    assert run.steps.threshold.tolist() == [0.5] * 5
    (calls,) = run.info["clip_calls"]
    assert (calls["count"], calls["before_backward"], calls["per_micro_batch"]) == (5, False, False)


SAM_BY_TORCH = """
def gradients(start):
    model.zero_grad()
    ((model(x[start:start + 16]) - 10 * x[start:start + 16, :1]) ** 2).mean().backward()
    return [weight.value.grad for weight in model.trainable_weights]

for start in range(0, 64, 16):
    first = gradients(start)
    was = [weight.value.detach().clone() for weight in model.trainable_weights]
    with torch.no_grad():
        for weight, gradient in zip(model.trainable_weights, first):
            weight.assign(weight.value + 0.01 * gradient)
    there = gradients(start)
    print(float(torch.nn.utils.get_total_norm(there)))
    with torch.no_grad():
        for weight, old in zip(model.trainable_weights, was):
            weight.assign(old)
        optimizer.apply(there, model.trainable_weights)
"""


def test_moves_to_another_point_are_no_steps_on_torch(forked: Workbench) -> None:
    forked.write("train.py", BY_TORCH.partition("for _ in")[0] + SAM_BY_TORCH)
    done = forked.steadygrad("run", "--out", "run.db", "train.py")
    assert done.returncode == 0, done.stderr
    run = steadygrad.open_run(forked.run_file())
    assert [each["class"] for each in run.info["optimizers"]] == ["SGD"]
    np.testing.assert_allclose(run.steps.norm, list(map(float, done.stdout.split())), rtol=1e-6)


TWO_LIBRARIES = """
import torch

def by_torch(kind):
    net = torch.nn.Linear(4, 1)
    optimizer, x = kind(net.parameters(), 0.1), torch.ones(8, 4)
    for _ in range(3):
        optimizer.zero_grad()
        (net(x) - 5.0).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 0.25)
        optimizer.step()

by_torch(torch.optim.Adam)
{by_torch}
by_torch(torch.optim.SGD)
"""


def test_optimizers_of_two_libraries_have_a_number_each(forked: Workbench) -> None:
    forked.write("train.py", TWO_LIBRARIES.format(by_torch=BY_TORCH))
    plain, observed = forked.both("train.py")
    assert plain.returncode == 0, plain.stderr
    assert observed.stdout == plain.stdout
    run = steadygrad.open_run(forked.run_file())
    assert [(o["class"], o["index"], o["framework"]) for o in run.info["optimizers"]] == [
        ("Adam", 0, "torch"),
        ("SGD", 1, "keras"),
        ("SGD", 2, "torch"),
    ]
    assert {"keras", "torch"} <= run.info["versions"].keys()
    assert run.steps.optimizer.tolist() == [0] * 3 + [1] * 5 + [2] * 3
    assert run.steps.threshold.tolist() == [0.25] * 3 + [0.5] * 5 + [0.25] * 3
    assert {(t.optimizer, len(t.shape)) for t in run.tensors} == {
        (number, dimensions) for number in range(3) for dimensions in (1, 2)
    }
    counts = {call["optimizer"]: call["count"] for call in run.info["clip_calls"]}
    assert counts == {0: 3, 1: 5, 2: 3}


@pytest.fixture(scope="module")
def tensorflow_forks() -> Iterator[Forks]:
    with Forks("tensorflow") as forks:
        yield forks


@pytest.fixture
def tensorflow_forked(tmp_path: Path, tensorflow_forks: Forks) -> Workbench:
    """A workbench for scripts of TensorFlow, whose loading takes seven seconds a process."""
    return Workbench(tmp_path / "tensorflow_forked", tensorflow_forks)


CLIPPED = """
import os
os.environ["KERAS_BACKEND"] = "tensorflow"
import numpy as np
import keras

keras.utils.set_random_seed(0)
x = np.random.randn(8, 4).astype("float32")
y = 100 * x[:, :1]

class Model(keras.Model):
    def __init__(self):
        super().__init__()
        self.hidden, self.out = keras.layers.Dense(8, activation="tanh"), keras.layers.Dense(1)

    def call(self, x):
        return self.out(self.hidden(x))

def moved(train):
    before = model.get_weights()
    train()
    pairs = zip(before, model.get_weights(), strict=True)
    print(np.sqrt(sum(float(((a - b) ** 2).sum()) for a, b in pairs)))

model = Model()
model(x)
model.compile(optimizer=keras.optimizers.SGD(1.0, global_clipnorm=100.0), loss="mse")
moved(lambda: model.fit(x, y, batch_size=8, verbose=0))
model.fit(x * np.nan, y, batch_size=8, verbose=0)
print(np.isfinite(model.get_weights()[0]).all(), len(model.optimizer.get_config()))
model.save_weights("model.weights.h5")
import tensorflow as tf

class Inside(keras.optimizers.SGD):
    def update_step(self, gradient, variable, learning_rate):
        super().update_step(tf.clip_by_value(gradient, -1e9, 1e9), variable, learning_rate)

sgd = Inside(1.0)

@tf.function
def step():
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean((model(x) - y) ** 2)
    grads, _ = tf.clip_by_global_norm(tape.gradient(loss, model.trainable_variables), 1e-3)
    sgd.apply_gradients(zip(grads, model.trainable_variables))

moved(step)
"""


def test_clip_reaches_keras_optimizers(tensorflow_forked: Workbench) -> None:
    # on the other backends: `run_clips_many_optimizers_and_windows` in tests/unit/keras
    tensorflow_forked.write("train.py", CLIPPED)
    done = tensorflow_forked.steadygrad("run", "--clip", "norm:0.5", "--out", "run.db", "train.py")
    assert done.returncode == 0, done.stderr
    moved, survived, *by_tape = done.stdout.splitlines()
    assert float(moved) == pytest.approx(0.5, rel=1e-3)
    assert survived.startswith("True")
    assert [float(line) for line in by_tape] == pytest.approx([0.5] * len(by_tape), rel=1e-3)
    assert len(by_tape) == 1
    said = " ".join(done.stderr.split())
    assert "SGD's own global_clipnorm=100.0 was replaced by --clip" in said
    assert "tf.clip_by_global_norm was replaced" in said
    assert "Inside still clips inside its own step, by tf.clip_by_value, behind --clip" in said
    run = steadygrad.open_run(tensorflow_forked.run_file())
    assert run.steps.action.tolist() == ["clip", "skip", *["clip"] * len(by_tape)]
    assert run.steps.threshold[0] == 0.5
    assert run.steps.coef[0] == pytest.approx(0.5 / run.steps.norm[0], rel=1e-6)
    assert run.steps.norm[0] > 100
    assert np.isnan(run.steps.norm[1])


THROWN_AWAY = """
import numpy as np, keras, tensorflow as tf
rng = np.random.default_rng(0)
x = rng.standard_normal((32, 4)).astype("float32")
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])

class Inside(keras.optimizers.SGD):
    def update_step(self, gradient, variable, learning_rate):
        super().update_step(tf.clip_by_value(gradient, -1e9, 1e9), variable, learning_rate)

optimizer = Inside(0.01)
{fix}

@tf.function
def step():
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean((model(x) - 5 * x[:, :1]) ** 2)
    gradients = tape.gradient(loss, model.trainable_variables)
    {clip}
    optimizer.apply_gradients(zip(gradients, model.trainable_variables))

for _ in range(20):
    before = model.get_weights()
    step()
pairs = zip(before, model.get_weights(), strict=True)
print(np.sqrt(sum(float(((a - b) ** 2).sum()) for a, b in pairs)))
"""


def test_the_fix_for_gradients_that_are_thrown_away_clips(tensorflow_forked: Workbench) -> None:
    def run(name: str, fix: str, clip: str) -> tuple[float, list[Any]]:
        tensorflow_forked.write(f"{name}.py", THROWN_AWAY.format(fix=fix, clip=clip))
        done = tensorflow_forked.steadygrad("run", "--out", f"{name}.db", f"{name}.py")
        assert done.returncode == 0, done.stderr
        said = " ".join(done.stderr.split())
        assert fix or "the script's Inside clips inside its own step, by tf.clip_by_value" in said
        return float(done.stdout), steadygrad.diagnose(tensorflow_forked.run_file(f"{name}.db"))

    moved, found = run("thrown", "", "clipped, _ = tf.clip_by_global_norm(gradients, 0.5)")
    assert found[0].id == "SG709"
    assert moved > 2 * 0.01 * 0.5
    moved, found = run("kept", found[0].fixes[0], "")
    assert moved == pytest.approx(0.01 * 0.5, rel=1e-3)
    assert "SG709" not in {f.id for f in found}


CLIPPED_TF_KERAS = """
import numpy as np, tensorflow as tf, tf_keras
x = np.random.default_rng(0).standard_normal((8, 4)).astype("float32") * 30
weight = tf.Variable(tf.ones([4, 1]))
scaler = tf_keras.LossScaleOptimizerV3(tf_keras.SGD(1.0, global_clipnorm=0.125))

def step(optimizer, factor, limit=None):
    before = weight.numpy()
    with tf.GradientTape() as tape:
        loss = factor * tf.reduce_mean((x @ weight) ** 2)
        scaled = optimizer.get_scaled_loss(loss) if optimizer is scaler else loss
    grads = tape.gradient(scaled, [weight])
    if limit is not None:
        grads, _ = tf.clip_by_global_norm(grads, limit)
    if optimizer is scaler:
        grads = scaler.get_unscaled_gradients(grads)
    optimizer.apply_gradients(zip(grads, [weight]))
    print(float(np.linalg.norm(weight.numpy() - before)))

sgd = tf_keras.SGD(1.0, global_clipnorm=0.125)
step(sgd, 1.0)
step(sgd, np.inf)
print(sgd.global_clipnorm)
step(scaler, 1.0, limit=0.125)
step(scaler, np.inf)
step(scaler, 1e-6)
print(float(scaler.loss_scale))
first = tf.compat.v1.train.GradientDescentOptimizer(1.0)
compiled = tf.function(lambda grad: first.apply_gradients([(grad, weight)]))
for grad in ([3.0, 4.0, 0.0, 0.0], [float("nan")] * 4):
    before = weight.numpy()
    compiled(tf.reshape(grad, [4, 1]))
    print(float(np.linalg.norm(weight.numpy() - before)))
"""


def test_clip_reaches_optimizers_of_tf_keras(tensorflow_forked: Workbench) -> None:
    tensorflow_forked.write("train.py", CLIPPED_TF_KERAS)
    tensorflow_forked.write("tf_keras.py", TF_KERAS)
    done = tensorflow_forked.steadygrad("run", "--clip", "norm:0.5", "--out", "run.db", "train.py")
    assert done.returncode == 0, done.stderr
    said = list(map(float, done.stdout.split()))
    small = 0.5 if said[5] > 0.4 else said[5]
    expected = [0.5, 0.0, 0.125, 0.5, 0.0, small, 512.0, 0.5, 0.0]
    assert said == pytest.approx(expected, rel=1e-3)
    words = " ".join(done.stderr.split())
    assert "SGD's own global_clipnorm=0.125 was replaced by --clip" in words
    assert "tf.clip_by_global_norm was replaced by --clip" in words
    assert "not applied" not in words
    assert "steadygrad diagnose run.db" in words  # too few steps for a threshold
    run = steadygrad.open_run(tensorflow_forked.run_file())
    of_keras, of_scaler, of_first = (run.steps[run.steps["optimizer"] == i] for i in range(3))
    assert of_keras.action.tolist() == ["clip", "skip"]
    assert of_scaler.action.tolist()[:2] == ["clip", "skip"]
    assert of_scaler.loss_scale.tolist() == [1024.0, 1024.0, 512.0]
    assert of_first.action.tolist() == ["clip", "skip"]
    assert of_first.norm[0] == 5.0
    for steps in (of_keras, of_scaler, of_first):
        assert steps.threshold[0] == 0.5
        assert steps.coef[0] == pytest.approx(0.5 / steps.norm[0], rel=1e-6)


def test_a_jax_script_is_told_what_to_add(bench: Any) -> None:
    bench.write("loop.py", "import jax\nprint(float(jax.grad(lambda x: x * x)(3.0)))\n")
    done = bench.steadygrad("run", "loop.py")
    assert done.stdout == "6.0\n"
    words = " ".join(done.stderr.split())
    assert "0 steps seen" in words
    assert "steadygrad.jax.record(" in words


SESSION = """
import numpy as np, sys, tensorflow as tf
v1 = tf.compat.v1
v1.disable_eager_execution()
v1.set_random_seed(1)
rng = np.random.default_rng(0)
x = 3 * rng.standard_normal((64, 6)).astype("float32")
inputs = v1.placeholder(tf.float32, [None, 6])
weight = v1.get_variable("weight", [6, 1])
bias = v1.get_variable("bias", [1], initializer=v1.zeros_initializer())
loss = tf.reduce_mean((inputs @ weight + bias - 5 * inputs[:, :1]) ** 2)
optimizer = v1.train.MomentumOptimizer(0.01, 0.9)
gradients, variables = zip(*optimizer.compute_gradients(loss))
norm = tf.linalg.global_norm(gradients)
clipped, _ = tf.clip_by_global_norm(gradients, 1.0)
train = optimizer.apply_gradients(zip(clipped, variables))
with v1.Session() as session:
    session.run(v1.global_variables_initializer())
    for _ in range(10):
        print(*map(float, session.run([norm, loss, train], {inputs: x})[:2]))
    print(session.run(weight).tobytes().hex(), len(v1.global_variables()))

import traceback
with tf.GradientTape() as tape:
    square = weight * weight
tape.gradient(square, weight)
for act in (lambda: tape.gradient(square, weight), lambda: weight.assign_sub(["a"])):
    try:
        act()
    except (RuntimeError, TypeError, ValueError):
        print(traceback.format_exc())
"""


def test_graphs_in_sessions_are_observed_and_keep_their_own_clip(
    tensorflow_forked: Workbench,
) -> None:
    tensorflow_forked.write("train.py", SESSION)
    plain = tensorflow_forked.python("train.py")
    done = tensorflow_forked.steadygrad("run", "--clip", "norm:0.5", "--out", "run.db", "train.py")
    assert (done.stdout, done.returncode) == (plain.stdout, 0), done.stderr
    assert plain.stdout.count("Traceback") >= 2
    assert "--clip was not applied to MomentumOptimizer" in " ".join(done.stderr.split())
    run = steadygrad.open_run(tensorflow_forked.run_file())
    said = np.array([line.split() for line in plain.stdout.splitlines()[:10]], float)
    np.testing.assert_allclose(run.steps.norm, said[:, 0], rtol=1e-5)
    np.testing.assert_allclose(run.steps.loss, said[:, 1], rtol=1e-5)
    np.testing.assert_allclose(run.steps.coef, 1 / said[:, 0], rtol=1e-5)
    assert set(run.steps.threshold) == {1.0}
    assert [tensor.name for tensor in run.tensors] == ["weight", "bias"]


ARITHMETIC = """
import hashlib
import tensorflow as tf
import keras

x, y = tf.random.stateless_normal((16, 4), (1, 2)), 3 * tf.ones((16, 1))

def clipped(gradients):
    norm = tf.sqrt(tf.add_n([tf.reduce_sum(each * each) for each in gradients]))
    return [each * tf.minimum(1.0, 0.25 / (norm + 1e-6)) for each in gradients], norm

def divided(gradients):
    return [each / 8.0 for each in gradients], tf.linalg.global_norm(gradients) / 8.0

def train(around, optimizer, change):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([
        keras.Input((4,)), keras.layers.Dense(8, "tanh"), keras.layers.Dense(1),
    ])
    weights = model.trainable_variables
    if not isinstance(optimizer, keras.Optimizer):
        weights = [weight._value for weight in weights]

    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(x) - y) ** 2)
        gradients, norm = change(tape.gradient(loss, weights))
        optimizer.apply_gradients(zip(gradients, weights))
        return norm

    step = around(step)
    for _ in range(4):
        print(float(step()))
    print(hashlib.sha256(b"".join(each.numpy().tobytes() for each in weights)).hexdigest())

train(lambda step: step, keras.optimizers.Adam(0.01), clipped)
train(tf.function, keras.optimizers.Adam(0.01), clipped)
train(tf.function, tf.compat.v1.train.MomentumOptimizer(0.01, 0.9), clipped)
train(tf.function, keras.optimizers.SGD(0.01), divided)
"""


def test_a_clip_by_arithmetic_in_tensorflow_is_seen(tensorflow_forked: Workbench) -> None:
    tensorflow_forked.write("train.py", ARITHMETIC)
    plain, observed = tensorflow_forked.both("train.py")
    assert plain.returncode == 0, plain.stderr
    assert (observed.stdout, observed.returncode) == (plain.stdout, 0), observed.stderr
    run = steadygrad.open_run(tensorflow_forked.run_file())
    assert "troubles" not in run.info
    lines = np.array(plain.stdout.split()).reshape(4, 5)
    for number, said in enumerate(lines[:, :4].astype(float)):
        steps = run.steps[run.steps["optimizer"] == number]
        np.testing.assert_allclose(steps["norm"], said, rtol=1e-5)
        if number < 3:
            assert set(steps["action"]) == {"clip"}
            np.testing.assert_allclose(steps["threshold"], 0.25)
            np.testing.assert_allclose(steps["coef"], 0.25 / said, rtol=1e-5)
        else:
            assert set(steps["action"]) == {"none"}
