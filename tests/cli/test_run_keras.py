"""A Keras script under `steadygrad run` trains as it would have, and its steps are on record."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import steadygrad

TRAIN = """
import hashlib, os, sys
os.environ["KERAS_BACKEND"] = sys.argv[1]
import numpy as np
import keras

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
weights = b"".join(np.asarray(w).tobytes() for w in model.get_weights())
print(len(model.optimizer.variables), hashlib.sha256(weights).hexdigest())
model.save("model.keras")
"""


@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_a_keras_script_is_observed_and_unchanged(bench: Any, backend: str) -> None:
    bench.write("train.py", TRAIN)
    plain = bench.python("train.py", backend)
    observed = bench.steadygrad("run", "--out", "run.db", "train.py", backend)
    assert plain.returncode == 0, plain.stderr
    assert (observed.stdout, observed.returncode) == (plain.stdout, 0)
    assert "Next: steadygrad report run.db" in observed.stderr
    run = steadygrad.open_run(bench.run_file())
    assert "troubles" not in run.info
    assert (run.info["framework"], run.info["backend"]) == ("keras", backend)
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


CLIPPED = """
import os, sys
os.environ["KERAS_BACKEND"] = sys.argv[1]
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
if sys.argv[1] == "tensorflow":
    import tensorflow as tf
    sgd = keras.optimizers.SGD(1.0)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(x) - y) ** 2)
        grads, _ = tf.clip_by_global_norm(tape.gradient(loss, model.trainable_variables), 1e-3)
        sgd.apply_gradients(zip(grads, model.trainable_variables))

    moved(step)
"""


@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
def test_clip_reaches_keras_optimizers(bench: Any, backend: str) -> None:
    bench.write("train.py", CLIPPED)
    done = bench.steadygrad("run", "--clip", "norm:0.5", "--out", "run.db", "train.py", backend)
    assert done.returncode == 0, done.stderr
    moved, survived, *by_tape = done.stdout.splitlines()
    assert float(moved) == pytest.approx(0.5, rel=1e-3)
    assert survived.startswith("True")
    assert [float(line) for line in by_tape] == pytest.approx([0.5] * len(by_tape), rel=1e-3)
    assert len(by_tape) == (backend == "tensorflow")
    said = " ".join(done.stderr.split())
    assert "SGD's own global_clipnorm=100.0 was replaced by --clip" in said
    assert ("tf.clip_by_global_norm was replaced" in said) == (backend == "tensorflow")
    run = steadygrad.open_run(bench.run_file())
    assert run.steps.action.tolist() == ["clip", "skip", *["clip"] * len(by_tape)]
    assert run.steps.threshold[0] == 0.5
    assert run.steps.coef[0] == pytest.approx(0.5 / run.steps.norm[0], rel=1e-6)
    assert run.steps.norm[0] > 100
    assert np.isnan(run.steps.norm[1])


def test_a_jax_script_is_told_what_to_add(bench: Any) -> None:
    bench.write("loop.py", "import jax\nprint(float(jax.grad(lambda x: x * x)(3.0)))\n")
    done = bench.steadygrad("run", "loop.py")
    assert done.stdout == "6.0\n"
    words = " ".join(done.stderr.split())
    assert "0 steps seen" in words
    assert "steadygrad.jax.record(" in words
