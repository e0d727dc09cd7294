"""Everything that must hold of `steadygrad.keras` on one backend, run in a process of its own.

Keras serves one backend a process, and importing TensorFlow takes seconds: so the cases of a
backend share a process, and print one JSON line that names what failed.
"""

import json
import os
import sys
import tempfile
import traceback
import warnings

CASES = {}


def case(*backends):
    def keep(function):
        if not backends or os.environ.get("KERAS_BACKEND") in backends:
            CASES[function.__name__] = function
        return function

    return keep


def model_of(optimizer, seed=0, jit="auto", norm=False):
    keras.utils.set_random_seed(seed)
    layers = [keras.Input((4,)), keras.layers.Dense(5, activation="tanh"), keras.layers.Dense(1)]
    model = keras.Sequential(layers)
    model.compile(optimizer=optimizer, loss="mse", jit_compile=jit)
    return model


def data(n=32):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((n, 4)).astype("float32")
    return x, (x @ np.arange(4.0)).astype("float32")[:, None]


def own(optimizer):
    """The plain optimizer's variables, on the host."""
    return [
        keras.ops.convert_to_numpy(v.value)
        for v in optimizer.variables
        if "steadygrad" not in v.name
    ]


def weights(model):
    return [np.array(w) for w in model.get_weights()]


def equal(a, b):
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def close(a, b, rtol=2e-6, atol=1e-6):
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=atol)


def tensor(values):
    return keras.ops.convert_to_tensor(np.asarray(values, "float32"))


def pair(optimizer, clip="norm:1.0", **more):
    weight = keras.Variable(np.array([1.0, -2.0], "float32"))
    return sg.attach(optimizer, clip=clip, **more), weight


def value(variable):
    return keras.ops.convert_to_numpy(variable.value)


@case()
def fit_equals_global_clipnorm():
    x, y = data()
    for make in (keras.optimizers.SGD, keras.optimizers.AdamW):
        theirs = model_of(make(0.05, global_clipnorm=0.5))
        theirs.fit(x, y, epochs=2, batch_size=8, verbose=0, shuffle=False)
        optimizer = make(0.05)
        steady = sg.attach(optimizer, clip="norm:0.5")
        ours = model_of(optimizer)
        ours.fit(x, y, epochs=2, batch_size=8, verbose=0, shuffle=False)
        close(weights(ours), weights(theirs), rtol=1e-5)
        assert steady.clip_rate > 0
        assert steady.last.step == 7
        plain = model_of(make(0.05))
        plain.fit(x, y, epochs=2, batch_size=8, verbose=0, shuffle=False)
        assert not equal(weights(plain), weights(theirs))


@case()
def observing_is_bit_identical():
    x, y = data()
    plain = model_of("adam")
    plain.fit(x, y, epochs=2, batch_size=8, verbose=0)
    seen = model_of("adam")
    seen.fit(x, y, epochs=2, batch_size=8, verbose=0, callbacks=[sg.GradientMonitor()])
    assert equal(weights(plain), weights(seen))
    assert "Steady" not in type(seen.optimizer).__name__


@case()
def a_bad_batch_is_skipped_whole():
    x, y = data()
    optimizer = keras.optimizers.AdamW(0.05, use_ema=True)
    steady = sg.attach(optimizer, clip="zclip:warmup=2")
    model = model_of(optimizer)
    for _ in range(3):
        model.train_on_batch(x, y)
    before, slots, memory = weights(model), own(optimizer), steady.state_dict()
    broken = x.copy()
    broken[0, 0] = np.nan
    model.train_on_batch(broken, y)
    assert equal(before, weights(model))
    assert equal(slots, own(optimizer))
    after = steady.state_dict()
    for key, was in memory.items():
        if key.split("_")[1] not in ("figures", "tensors"):
            assert np.array_equal(was, after[key]), key
    assert steady.last.action == "skip"
    assert steady.last.step == 3
    assert steady.stats.nonfinite.sum() > 0
    model.train_on_batch(x, y)
    assert not equal(before, weights(model))
    assert int(keras.ops.convert_to_numpy(optimizer.iterations)) == 4


@case()
def huge_and_half_gradients_are_exact():
    steady, weight = pair(keras.optimizers.SGD(1.0))
    steady.optimizer.apply([tensor([3e20, 4e20])], [weight])
    close([value(weight)], [np.array([0.4, -2.8])])
    assert abs(steady.last.norm / 5e20 - 1) < 1e-6
    steady.optimizer.apply([tensor([0.3, 0.4])], [weight])
    assert steady.last.action == "none"


@case()
def other_policies():
    for spec, grads, want in (
        ("value:0.5", [3.0, 0.25], [0.5, -2.25]),
        ("tensor-norm:1.0", [3.0, 4.0], [0.4, -2.8]),
        ("agc:0.1", [3.0, 4.0], [1 - 0.6 * 0.1 * 5**0.5, -2 - 0.8 * 0.1 * 5**0.5]),
        ("norm:1.0,p=inf", [2.0, 4.0], [0.5, -3.0]),
    ):
        steady, weight = pair(keras.optimizers.SGD(1.0), spec)
        steady.optimizer.apply([tensor(grads)], [weight])
        close([value(weight)], [np.array(want)])
        assert steady.last.action == "clip", spec
    for spec in (
        "adagc",
        "autoclip:10",
        "auto",
        "skip+norm:1.0",
        "spam",
        "update-rms",
        "norm-schedule:5.0",
    ):
        steady, weight = pair(keras.optimizers.Adam(0.1), spec)
        for _ in range(3):
            steady.optimizer.apply([tensor([3.0, 4.0])], [weight])
        assert np.isfinite(value(weight)).all(), spec
        assert steady.last.step == 2
    for make, want in ((keras.optimizers.SGD, [0.4, -2.8]), (keras.optimizers.RMSprop, None)):
        steady, weight = pair(make(1.0), "{@RMSprop: none, *: norm:1.0}")
        steady.optimizer.apply([tensor([3.0, 4.0])], [weight])
        assert steady.last.action == ("clip" if want else "none"), make
        if want:
            close([value(weight)], [np.array(want)])
    steady, weight = pair(keras.optimizers.SGD(1.0), "norm:1.0", on_nonfinite="zero")
    steady.optimizer.apply([tensor([np.nan, 0.5])], [weight])
    close([value(weight)], [np.array([1.0, -2.5])])
    assert steady.last.nonfinite == 1


@case()
def accumulation_clips_the_average_once():
    steady, weight = pair(keras.optimizers.SGD(1.0, gradient_accumulation_steps=2))
    optimizer = steady.optimizer
    optimizer.apply([tensor([6.0, 0.0])], [weight])
    assert equal([value(weight)], [np.array([1.0, -2.0], "float32")])
    before = own(optimizer)
    optimizer.apply([tensor([np.nan, 0.0])], [weight])
    assert equal(before, own(optimizer))
    assert steady.last.action == "skip"
    optimizer.apply([tensor([0.0, 8.0])], [weight])
    close([value(weight)], [np.array([0.4, -2.8])])
    assert steady.last.norm == 5.0
    assert steady.last.action == "clip"


@case("tensorflow", "torch")
def loss_scale_optimizer_in_a_loop():
    # on JAX, Keras' own LossScaleOptimizer.apply leaks tracers: only `fit` can use it there
    inner = keras.optimizers.SGD(1.0)
    steady, weight = pair(keras.optimizers.LossScaleOptimizer(inner, initial_scale=8.0))
    outer = steady._outer
    for _ in range(2):
        outer.apply([tensor([24.0, 32.0])], [weight])
    close([value(weight)], [np.array([-0.2, -3.6])])
    assert steady.last.norm == 5.0
    assert steady.last.loss_scale == 8.0
    before = value(weight).copy()
    outer.apply([tensor([np.inf, 32.0])], [weight])
    assert equal([before], [value(weight)])
    assert steady.last.action == "skip"
    assert steady.last.step == 2
    assert steady.last.loss_scale == 4.0


@case()
def loss_scales_are_taken_out():
    steady, weight = pair(keras.optimizers.SGD(1.0, loss_scale_factor=4.0))
    steady.optimizer.apply([tensor([12.0, 16.0])], [weight])
    close([value(weight)], [np.array([0.4, -2.8])])
    assert steady.last.norm == 5.0
    x, y = data()
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.05), initial_scale=8.0)
    steady = sg.attach(optimizer, clip="norm:0.5")
    model = model_of(optimizer)
    model.fit(x, y, epochs=2, batch_size=8, verbose=0)
    assert steady.last.norm < 100
    model.fit(x + np.nan, y, epochs=1, batch_size=16, verbose=0)
    assert steady.last.step == 9
    assert steady.last.action == "skip"
    assert all(np.isfinite(w).all() for w in weights(model))


@case()
def saving_brings_everything_back():
    x, y = data()
    optimizer = keras.optimizers.Adam(0.05)
    sg.attach(optimizer, clip="zclip:warmup=2", on_nonfinite="zero")
    model = model_of(optimizer)
    model.fit(x, y, epochs=2, batch_size=8, verbose=0)
    with tempfile.TemporaryDirectory() as folder:
        model.save(folder + "/m.keras")
        again = keras.models.load_model(folder + "/m.keras")
    assert type(again.optimizer).__name__ == "SteadyAdam"
    assert len(again.optimizer.variables) == len(optimizer.variables)
    for a, b in zip(again.optimizer.variables, optimizer.variables, strict=True):
        assert np.array_equal(value(a), value(b), equal_nan=True), a.name
    for one in (model, again):
        one.fit(x, y, epochs=1, batch_size=8, verbose=0, shuffle=False)
    assert equal(weights(model), weights(again))


@case()
def attach_after_fit_works_or_raises():
    x, y = data()
    model = model_of("sgd")
    model.fit(x, y, verbose=0)
    if keras.backend.backend() != "torch":
        expect(AttachError, "model=model", lambda: sg.attach(model.optimizer))
    steady = sg.attach(model.optimizer, clip="norm:0.001", model=model)
    before = weights(model)
    model.fit(x, y, batch_size=32, verbose=0)
    moved = np.sqrt(sum(np.sum((a - b) ** 2) for a, b in zip(before, weights(model), strict=True)))
    assert abs(moved / 1e-5 - 1) < 1e-1, moved  # learning rate 0.01; float32 weights round
    steady.detach()
    model.fit(x, y, batch_size=32, verbose=0)
    expect(AttachError, "detached", lambda: steady.last)


@case()
def wrong_use_says_what_to_type():
    for name, spec in (
        ("clipnorm", "tensor-norm"),
        ("clipvalue", "value"),
        ("global_clipnorm", "norm"),
    ):
        expect(
            AttachError,
            f"{spec}:0.5",
            lambda n=name: sg.attach(keras.optimizers.SGD(0.1, **{n: 0.5})),
        )
    expect(AttachError, "Keras optimizer", lambda: sg.attach("adam"))
    steady, _ = pair(keras.optimizers.SGD(0.1))
    expect(AttachError, "already", lambda: sg.attach(steady.optimizer))
    expect(
        UsageError, "cannot raise", lambda: pair(keras.optimizers.SGD(0.1), on_nonfinite="raise")
    )


@case()
def multi_optimizer_is_clipped_as_one():
    a, b = keras.Variable(np.zeros(1, "float32")), keras.Variable(np.zeros(1, "float32"))
    inner = {a.path: keras.optimizers.SGD(1.0)}
    optimizer = keras.optimizers.MultiOptimizer(
        lambda v: inner.setdefault(v.path, keras.optimizers.SGD(10.0))
    )
    steady = sg.attach(optimizer, clip="norm:1.0")
    optimizer.build([a, b])
    optimizer.apply([tensor([3.0]), tensor([4.0])], [a, b])
    close([value(a), value(b)], [np.array([-0.6]), np.array([-8.0])])
    optimizer.apply([tensor([np.nan]), tensor([4.0])], [a, b])
    close([value(a), value(b)], [np.array([-0.6]), np.array([-8.0])])
    assert steady.last.action == "skip"


@case()
def missing_gradients_are_left_out():
    steady, weight = pair(keras.optimizers.SGD(1.0))
    idle = keras.Variable(np.ones(3, "float32"))
    steady.optimizer.build([weight, idle])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras' own word on the missing gradient
        steady.optimizer.apply([tensor([3.0, 4.0]), None], [weight, idle])
    assert steady.last.norm == 5.0
    assert np.isnan(steady.stats.norms[1])
    assert value(idle).tolist() == [1.0, 1.0, 1.0]


@case()
def the_monitor_fills_logs_and_run_file():
    x, y = data()
    optimizer = keras.optimizers.SGD(0.05)
    with tempfile.TemporaryDirectory() as folder:
        steady = sg.attach(optimizer, clip="norm:0.5", run=folder + "/run.db")
        history = model_of(optimizer).fit(
            x, y, epochs=3, batch_size=8, verbose=0, callbacks=[sg.GradientMonitor(steady)]
        )
        state = steady.state_dict()
        steady.detach()
        run = steadygrad.open_run(folder + "/run.db")
        assert run.info["framework"] == "keras"
        assert run.steps.step.tolist() == list(range(12))
        assert np.isfinite(run.steps.loss).all()
        assert (run.steps.action == "clip").any()
        assert np.allclose(run.steps.lr, 0.05)
        assert run.tensor_norms.shape == (12, 4)
        total = np.sqrt((run.tensor_norms**2).sum(1))
        assert np.allclose(total, run.steps.norm, rtol=1e-2)
        steadygrad.diagnose(run)
    assert {"grad_norm", "clip_coef", "clip_rate"} <= set(history.history)
    assert history.history["clip_rate"][-1] > 0
    fresh = keras.optimizers.SGD(0.05)
    other = sg.attach(fresh, clip="norm:0.5")
    model = model_of(fresh)
    fresh.build(model.trainable_variables)
    other.load_state_dict(state)
    assert other.last.step == 11


@case()
def the_monitor_samples_weights_and_tells_batch_losses():
    keras.utils.set_random_seed(0)
    layers = [keras.Input((6, 2)), keras.layers.SimpleRNN(5), keras.layers.Dense(1)]
    model = keras.Sequential(layers)
    model.compile(optimizer=keras.optimizers.SGD(0.0), loss="mse")
    x = np.random.default_rng(3).standard_normal((32, 6, 2)).astype("float32")
    y = np.repeat(np.array([0.0, 1.0, 2.0, 3.0], "float32"), 8)[:, None]
    before = weights(model)
    with tempfile.TemporaryDirectory() as folder:
        monitor = sg.GradientMonitor(run=folder + "/run.db")
        model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0, callbacks=[monitor])
        run = steadygrad.open_run(folder + "/run.db")
        steps, norms = run.samples("weight_norm")
        assert steps.tolist() == [0, 1, 2, 4, 8]
        close(norms[0], [np.linalg.norm(w) for w in before])
        steps, radii = run.samples("spectral_radius")
        assert np.allclose(radii[:, 1], 1.0, atol=1e-5)  # Keras' default is orthogonal
        assert run.samples("recurrent_steps")[1][0, 1] == 6
        assert [t.module for t in run.tensors] == ["SimpleRNNCell"] * 3 + ["Dense"] * 2
        each = [model.evaluate(x[i : i + 8], y[i : i + 8], verbose=0) for i in range(0, 32, 8)]
        close(run.steps.loss, each + each, rtol=1e-4)
    moving = model_of(keras.optimizers.SGD(0.1))
    with tempfile.TemporaryDirectory() as folder:
        x, y = data()
        first = weights(moving)
        monitor = sg.GradientMonitor(run=folder + "/run.db")
        moving.fit(x, y, batch_size=32, verbose=0, callbacks=[monitor])
        steps, ratios = steadygrad.open_run(folder + "/run.db").samples("update_ratio")
    pairs = zip(first, weights(moving), strict=True)
    moved = [np.linalg.norm(b - a) / np.linalg.norm(a) for a, b in pairs if a.any()]
    assert steps.tolist() == [0]
    close(ratios[0][np.isfinite(ratios[0])], moved, rtol=1e-5)


@case("tensorflow")
def rules_calibration_and_report_read_a_run():
    from steadygrad.report import write_report

    x, y = data(64)
    for rate, grave in ((0.01, False), (1.5, True)):
        with tempfile.TemporaryDirectory() as folder:
            path = folder + "/run.db"
            keras.utils.set_random_seed(0)
            model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
            model.compile(optimizer=keras.optimizers.SGD(rate), loss="mse")
            monitor = sg.GradientMonitor(run=path)
            model.fit(x, y, epochs=8, batch_size=8, verbose=0, callbacks=[monitor])
            monitor.steady.run.close()
            found = steadygrad.diagnose(path)
            assert any(f.severity == "error" for f in found) == grave, found
            code = "\n".join(fix for f in found for fix in f.fixes)
            assert "steadygrad.torch" not in code, code
            assert "steadygrad.jax" not in code, code
            assert "keras" in code or not grave, code
            if not grave:
                assert 0 < steadygrad.calibrate(path).threshold < 100
            report = write_report([path], folder + "/report.html")
            assert "keras" in report.read_text()


@case()
def weights_files_hold_the_policy_too():
    x, y = data()
    kept = []
    with tempfile.TemporaryDirectory() as folder:
        for turn in (0, 1):
            optimizer = keras.optimizers.Adam(0.05)
            steady = sg.attach(optimizer, clip="zclip:warmup=2")
            model = model_of(optimizer, seed=turn)
            model.fit(x, y, batch_size=8, verbose=0)
            if turn:
                model.load_weights(folder + "/m.weights.h5")
            else:
                model.save_weights(folder + "/m.weights.h5")
            kept.append((weights(model), steady.state_dict()))
    assert equal(kept[0][0], kept[1][0])
    for key, was in kept[0][1].items():
        assert np.array_equal(was, kept[1][1][key], equal_nan=True), key


@case("tensorflow")
def a_train_step_of_ones_own():
    import tensorflow as tf

    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")

        def call(self, x):
            return self.dense(x)

        def train_step(self, batch):
            x, y = batch
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(y * self(x))
            grads = tape.gradient(loss, self.trainable_variables)
            self.optimizer.apply_gradients(zip(grads, self.trainable_variables, strict=True))
            return {"loss": loss}

    optimizer = keras.optimizers.SGD(1.0)
    steady = sg.attach(optimizer, clip="norm:1.0")
    model = Own()
    model.compile(optimizer=optimizer)
    one = np.array([[3.0, 4.0]], "float32")
    model.fit(one, np.ones((1, 1), "float32"), verbose=0)
    close([weights(model)[0].ravel()], [np.array([0.4, 0.2])])
    assert steady.last.norm == 5.0


@case("tensorflow", "jax")
def jit_and_no_jit_agree():
    x, y = data()
    seen = []
    for jit in (True, False):
        optimizer = keras.optimizers.Adam(0.05)
        steady = sg.attach(optimizer, clip="zclip:warmup=2")
        model = model_of(optimizer, jit=jit)
        model.fit(x, y, epochs=2, batch_size=8, verbose=0, shuffle=False)
        seen.append((weights(model), steady.last.norm, steady.last.threshold))
    close(seen[0][0], seen[1][0], rtol=1e-4, atol=1e-5)
    assert abs(seen[0][1] / seen[1][1] - 1) < 1e-3


@case("tensorflow")
def gradient_tape_loops_and_sparse_gradients():
    import tensorflow as tf

    for compiled in (None, False, True):
        table = tf.Variable(np.zeros((4, 1), "float32"))
        optimizer = keras.optimizers.SGD(1.0)
        steady = sg.attach(optimizer, clip="norm:3.5")
        optimizer.build([table])

        def train(rows, table=table, optimizer=optimizer):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(tf.gather(table, rows) * tf.constant([[3.0], [4.0]]))
            optimizer.apply_gradients([(tape.gradient(loss, table), table)])
            return loss

        step = train if compiled is None else tf.function(train, jit_compile=compiled)
        step(tf.constant([1, 1]))  # duplicates: 7, not 5
        assert steady.last.norm == 7.0, steady.last
        close([table.numpy().ravel()], [np.array([0.0, -3.5, 0.0, 0.0])])


@case("tensorflow")
def drop_ins_inside_a_scaled_tape():
    import tensorflow as tf

    import steadygrad.tensorflow as functions

    weight = keras.Variable(np.zeros(2, "float32"))
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(1.0), initial_scale=1024.0)
    optimizer.build([weight])

    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            scaled = optimizer.scale_loss(tf.reduce_sum(weight.value * x))
        grad = tape.gradient(scaled, weight.value) / optimizer.dynamic_scale
        (clipped,), norm = functions.clip_by_global_norm([grad], 1.0)
        optimizer.apply([clipped * optimizer.dynamic_scale], [weight])
        return norm

    assert float(step(tf.constant([3.0, 4.0]))) == 5.0
    close([value(weight)], [np.array([-0.6, -0.8])])


@case("tensorflow")
def mirrored_replicas_reduce_first():
    import tensorflow as tf

    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
        optimizer = keras.optimizers.SGD(1.0)
        steady = sg.attach(optimizer, clip="norm:1.0")
        model.compile(optimizer=optimizer, loss=lambda y, p: y * p)
    start = weights(model)[0].copy()
    x = np.array([[3.0], [5.0]], "float32")
    batches = tf.data.Dataset.from_tensor_slices((x, np.ones((2, 1), "float32"))).batch(2)
    model.fit(batches, verbose=0)
    assert abs(steady.last.norm - 4.0) < 1e-6, steady.last  # the mean of 3 and 5, not each alone
    close([weights(model)[0]], [start - 1.0])
    bad = tf.data.Dataset.from_tensor_slices((x * np.nan, np.ones((2, 1), "float32"))).batch(2)
    model.fit(bad, verbose=0)
    close([weights(model)[0]], [start - 1.0])
    assert steady.last.action == "skip"


def expect(kind, words, call):
    try:
        call()
    except kind as error:
        found = str(error)
    else:
        raise AssertionError(f"no {kind.__name__}")
    assert words in found, found


def trouble_with(name):
    try:
        CASES[name]()
    except Exception:
        return traceback.format_exc()
    return ""


def main():
    wanted = sys.argv[1:] or list(CASES)
    failed = {name: trouble for name in wanted if (trouble := trouble_with(name))}
    print(json.dumps({"ran": wanted, "failed": failed}))


if __name__ == "__main__":
    import keras
    import numpy as np

    import steadygrad
    import steadygrad.keras as sg
    from steadygrad.errors import AttachError, UsageError

    if keras.backend.backend() == "tensorflow":
        import tensorflow

        cpu = tensorflow.config.list_physical_devices("CPU")[0]
        two = [tensorflow.config.LogicalDeviceConfiguration()] * 2
        tensorflow.config.set_logical_device_configuration(cpu, two)
    main()
