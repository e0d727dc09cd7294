"""Keras' part of the corpus: six kinds of model, what can be broken in them, and `fit`.

Recorded as a user would: `steadygrad.keras.attach` with `GradientMonitor`. What needs a
step number is put into the data, since Keras compiles its step once: every row has a flag
in its label that a loss may read. This file does not import Keras before a case runs:
its start costs seconds.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from architectures import characters, digits
from training import SGD_FACTOR, Trace

import steadygrad
from steadygrad.runlog import Run

STEPS, ROWS = 100, 32
STEPS_SCORED = 10
"""First and last steps whose losses say what was learned."""


@dataclass(frozen=True)
class KerasSetup:
    """How a Keras model is trained; the defaults are healthy."""

    act: str = "relu"
    depth: int = 3
    norm: bool = False
    gain: float = 1.0
    fill: float | None = None
    bias: float = 0.0
    cut: bool = False
    frozen: bool = False
    lr_factor: float = 1.0
    optimizer: str = "Adam"
    clip: str = "none"
    recurrent_gain: float = 1.0
    spoil: Callable[[np.ndarray], None] = lambda x: None
    flags: Callable[[int], float] = lambda step: 1.0
    loss: str = "plain"
    criterion: str = ""
    head: int = 10
    weigh: Callable[[int], float] = lambda step: 1.0
    build: Callable[[Any], None] = lambda model: None


@functools.cache
def _keras() -> Any:
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras

    return keras


def _dense(setup: KerasSetup) -> list[Any]:
    layers = _keras().layers
    found: list[Any] = []
    for _ in range(setup.depth):
        found += [layers.Dense(48), *_after(setup)]
    return found


def _after(setup: KerasSetup) -> list[Any]:
    """What stands behind a matrix: perhaps normalisation, then the activation."""
    layers = _keras().layers
    act: Any = setup.act
    if act == "steep":
        act = lambda x: 8.0 * _keras().ops.relu(x)  # noqa: E731
    return [*([layers.LayerNormalization()] if setup.norm else []), layers.Activation(act)]


def _convolutions(setup: KerasSetup) -> list[Any]:
    layers = _keras().layers
    found: list[Any] = [layers.Reshape((8, 8, 1))]
    for _ in range(setup.depth):
        found += [layers.Conv2D(16, 3, padding="same"), *_after(setup)]
    return [*found, layers.MaxPool2D(), layers.Flatten()]


def _recurrent(setup: KerasSetup) -> list[Any]:
    keras = _keras()
    start = keras.initializers.Orthogonal(gain=setup.recurrent_gain, seed=5)
    cell = keras.layers.SimpleRNN(48, activation=setup.act, recurrent_initializer=start)
    return [keras.layers.Reshape((32, 2)), cell]


def _embedded(setup: KerasSetup) -> list[Any]:
    layers = _keras().layers
    return [layers.Embedding(characters()[1], 24), layers.LSTM(48, return_sequences=True)]


def _read_both_ways(setup: KerasSetup) -> list[Any]:
    layers = _keras().layers
    reader = layers.Bidirectional(layers.GRU(24, return_sequences=True))
    return [layers.Embedding(characters()[1], 24), reader]


def _residual(setup: KerasSetup) -> list[Any]:
    """Dense blocks around shortcuts, with batch normalisation."""
    keras = _keras()
    layers = keras.layers
    entry = keras.Input((48,))
    x = entry
    for _ in range(setup.depth):
        inner = layers.Dense(48)(layers.BatchNormalization()(x))
        x = layers.Add()([x, layers.Dense(48)(layers.Activation(setup.act)(inner))])
    return [layers.Dense(48), keras.Model(entry, x), layers.Activation(setup.act)]


BODIES: dict[str, Callable[[KerasSetup], list[Any]]] = {
    "keras_mlp": _dense,
    "keras_rnn": _recurrent,
    "keras_lstm": _embedded,
    "keras_cnn": _convolutions,
    "keras_gru": _read_both_ways,
    "keras_residual": _residual,
}
"""Name -> the layers of a model before its head."""
TEXT = ("keras_lstm", "keras_gru")


def _data(architecture: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """All batches of a run in a row: inputs, and labels."""
    rng = np.random.default_rng(seed)
    if architecture in TEXT:
        codes = characters()[0].numpy()
        starts = rng.integers(0, len(codes) - 25, STEPS * ROWS)
        place = starts[:, None] + np.arange(25)
        return codes[place[:, :-1]], codes[place[:, 1:]]
    x, y = (part.numpy() for part in digits())
    chosen = rng.integers(0, len(x), STEPS * ROWS)
    return x[chosen].copy(), y[chosen][:, None]


def _model(architecture: str, setup: KerasSetup) -> Any:
    keras = _keras()
    text = architecture in TEXT
    body = BODIES[architecture](setup)
    if setup.cut:
        first = 2 if architecture == "keras_cnn" else 1  # behind the first layer that has weights
        body.insert(first, keras.layers.Lambda(keras.ops.stop_gradient))
    head = keras.layers.Dense(characters()[1] if text else setup.head)
    shape = keras.Input((24,), dtype="int32") if text else keras.Input((64,))
    model = keras.Sequential([shape, *body, head])
    for weight in model.trainable_weights:
        if len(weight.shape) > 1 and "embedding" not in weight.path:
            value = np.array(weight)
            weight.assign(value * setup.gain if setup.fill is None else value * 0 + setup.fill)
        elif setup.bias and "bias" in weight.path and weight.shape[0] in (16, 48):
            weight.assign(np.full(weight.shape, setup.bias, "float32"))
    if setup.frozen:
        next(layer for layer in model.layers if layer.weights).trainable = False
    setup.build(model)
    return model


def _loss(name: str) -> Callable[[Any, Any], Any]:
    """Cross-entropy of labels that carry a flag in their last column."""
    ops = _keras().ops

    def plain(y: Any, logits: Any) -> Any:
        labels = ops.cast(y[..., :-1], "int32")
        shape = (*labels.shape[1:], logits.shape[-1])
        each = ops.sparse_categorical_crossentropy(
            labels, ops.reshape(logits, (-1, *shape)), from_logits=True
        )
        return ops.mean(each, axis=tuple(range(1, len(each.shape))))

    def logarithm(y: Any, logits: Any) -> Any:
        chance = ops.softmax(ops.reshape(logits, (-1, logits.shape[-1])))
        first = ops.reshape(chance[:, 0], (ops.shape(y)[0], -1))
        return plain(y, logits) - 1e-3 * ops.mean(ops.log(first * y[..., -1:]), axis=-1)

    return {"plain": plain, "logarithm": logarithm}[name]


def _criterion(name: str) -> Any:
    """A loss of Keras' own, as it is compiled with."""
    losses = _keras().losses
    if name == "binary":
        return losses.BinaryCrossentropy(from_logits=True)
    return losses.SparseCategoricalCrossentropy(from_logits=name == "logits")


def run_keras_case(architecture: str, seed: int, setup: KerasSetup, path: Path) -> Trace:
    """Train with `fit`, record into `path`, and return what others' rules need.

    Args:
        architecture: a key of `BODIES`.
        seed: of the weights and the batches.
        setup: healthy, or with a fault.
        path: a new run file.

    Returns:
        The trace, as far as the run file tells it.
    """
    import steadygrad.keras as sg

    keras = _keras()
    keras.utils.set_random_seed(seed)
    x, y = _data(architecture, seed)
    setup.spoil(x)
    steps = np.arange(STEPS).repeat(ROWS)
    flags = np.array([setup.flags(int(step)) for step in range(STEPS)])[steps]
    weights = np.array([setup.weigh(int(step)) for step in range(STEPS)], np.float64)[steps]
    labels = np.concatenate([y, flags[:, None]], axis=1).astype("float32")
    if setup.criterion:
        labels = y.astype("float32" if setup.criterion == "binary" else "int32")
    lr = 3e-3 * setup.lr_factor * (SGD_FACTOR if setup.optimizer == "SGD" else 1.0)
    momentum = {"momentum": 0.0} if setup.optimizer == "SGD" else {}
    optimizer = getattr(keras.optimizers, setup.optimizer)(lr, **momentum)
    steady = sg.attach(optimizer, clip=setup.clip, run=path)
    model = _model(architecture, setup)
    optimizer.build(model.trainable_variables)  # variables made while it is traced: traced twice
    loss = _criterion(setup.criterion) if setup.criterion else _loss(setup.loss)
    model.compile(optimizer=optimizer, loss=loss, jit_compile=False)
    options = {"batch_size": ROWS, "shuffle": False, "verbose": 0}
    if weights.min() != weights.max():
        options["sample_weight"] = weights.astype("float32")
    model.fit(x, labels, callbacks=[sg.GradientMonitor(steady)], **options)
    steady.detach()
    keras.utils.clear_session()
    trace = _trace(steadygrad.open_run(path))
    losses = np.array(trace.losses)
    trace.scores = [float(losses[:STEPS_SCORED].mean()), float(losses[-STEPS_SCORED:].mean())]
    return trace


def _trace(run: Run) -> Trace:
    """Matrices' figures; a mean \\|g\\| is taken as a Gaussian's of the same norm."""
    columns = [i for i, t in enumerate(run.tensors) if len(t.shape) > 1]
    norms = run.tensor_norms[:, columns]
    sizes = np.array([np.prod(run.tensors[i].shape) for i in columns], dtype=np.float64)
    return Trace(
        names=[run.tensors[i].name for i in columns],
        sizes=sizes.astype(int).tolist(),
        mean_abs=(np.nan_to_num(norms, posinf=np.inf) * np.sqrt(2 / np.pi / sizes)).tolist(),
        norms=norms.tolist(),
        zeros=run.tensor_zeros[:, columns].tolist(),
        losses=run.steps.loss.tolist(),
    )


# ---- what is broken, and what is not -----------------------------------------------------

Make = Callable[[str, int], KerasSetup]
DENSE, EVERY = ("keras_mlp", "keras_cnn"), tuple(BODIES)
DIGITS = ("keras_mlp", "keras_rnn", "keras_cnn", "keras_residual")
ORDINARY = {
    "keras_mlp": 3.0, "keras_rnn": 3.0, "keras_lstm": 1.5, "keras_cnn": 3.0, "keras_gru": 1.5,
    "keras_residual": 3.0,
}  # fmt: skip


def setup(**changes: Any) -> Make:
    """A maker that ignores architecture and seed."""
    return lambda architecture, seed: replace(KerasSetup(), **changes)


def clipped(factor: float) -> Make:
    return lambda a, seed: KerasSetup(clip=f"norm:{factor * ORDINARY[a]:g}")


def from_step(architecture: str, seed: int) -> KerasSetup:
    """The logarithm of 0 from a step on."""
    return KerasSetup(loss="logarithm", flags=lambda step: float(step < 35 + 7 * (seed % 3)))


def spoiled(architecture: str, seed: int) -> KerasSetup:
    def spoil(x: np.ndarray) -> None:
        x[(35 + 7 * (seed % 3)) * ROWS, 0] = np.nan

    return KerasSetup(spoil=spoil)


def outliers(x: np.ndarray) -> None:
    for step in (41, 67, 83):
        x[step * ROWS : (step + 1) * ROWS] *= 300.0


def only_the_start(x: np.ndarray) -> None:
    x[:, 16:] = 0.0


def break_weights(model: Any) -> None:
    weight = model.trainable_weights[0]
    value = np.array(weight)
    value.flat[3] = np.nan
    weight.assign(value)


HEALTHY: dict[str, tuple[tuple[str, ...], Make]] = {
    "plain": (EVERY, setup()),
    "sgd": (DIGITS, setup(optimizer="SGD")),
    "slow": (EVERY, setup(lr_factor=0.03)),
    "clipped": (EVERY, clipped(1.0)),
    "value": (("keras_mlp", "keras_lstm"), setup(clip="value:1.0")),
    "deep_norm": (DENSE, setup(depth=10, norm=True)),
    "tanh": (DENSE, setup(act="tanh")),
    "long": (("keras_rnn",), setup(act="tanh")),
    "recall": (("keras_rnn",), setup(act="tanh", spoil=only_the_start)),
    "frozen": (DIGITS, setup(frozen=True)),
    "in_order": (DIGITS, setup(criterion="logits")),
}
"""Variant -> (architectures, setup); the names are those of `faults.HEALTHY`."""

FAULTS: dict[str, tuple[tuple[str, ...], Make]] = {
    "nan_batch": (DIGITS, spoiled),
    "nan_operation": (EVERY, from_step),
    "broken_checkpoint": (("keras_mlp", "keras_lstm", "keras_gru"), setup(build=break_weights)),
    "outliers": (("keras_mlp",), setup(spoil=outliers, optimizer="SGD", lr_factor=0.01)),
    "deep_large": (DENSE, setup(depth=10, gain=6.0)),
    "depth_growth": (DENSE, setup(depth=10, act="steep")),
    "runaway_loss": (
        ("keras_mlp", "keras_lstm", "keras_gru"), setup(weigh=lambda step: 3.0 ** min(step, 79))),
    "recurrent_radius": (
        ("keras_rnn",), setup(recurrent_gain=1.8, act="relu", optimizer="SGD")),
    "recurrent_radius_adam": (("keras_rnn",), setup(recurrent_gain=2.5, act="relu")),
    "deep_sigmoid": (DENSE, setup(depth=10, act="sigmoid")),
    "deep_small": (DENSE, setup(depth=10, act="tanh", gain=0.05)),
    "forgetting": (
        ("keras_rnn",), setup(act="tanh", recurrent_gain=0.3, spoil=only_the_start)),
    "dead_relu": (DENSE, setup(bias=-30.0)),
    "detached": (("keras_mlp", "keras_cnn"), setup(cut=True)),
    "over_clipped": (EVERY, clipped(1e-3)),
    "never_reached": (EVERY, clipped(3e3)),
    "value_distorts": (EVERY, setup(clip="value:0.0001")),
    "zeros": (DENSE, setup(fill=0.0)),
    "constant": (DENSE, setup(fill=0.05)),
    "rate_adam": (EVERY, setup(lr_factor=300.0)),
    "rate_sgd": (DENSE, setup(optimizer="SGD", lr_factor=300.0)),
    "double_softmax": (DIGITS, setup(criterion="probabilities")),
    "wrong_targets": (DIGITS, setup(criterion="binary", head=1)),
}  # fmt: skip
"""Fault -> (architectures, setup); accepted ids and twins are those of `faults.FAULTS`."""
