"""Everything that must hold of `steadygrad.keras` on one backend, run in a process of its own.

Keras serves one backend a process, and importing TensorFlow takes seconds: so the cases of a
backend share a process, and print one JSON line that names what failed.
"""

import atexit
import contextlib
import functools
import gc
import json
import os
import sys
import tempfile
import time
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
    makers = [keras.optimizers.SGD]
    if keras.backend.backend() == "torch":  # each is compiled anew on the others
        makers.append(keras.optimizers.AdamW)
    for make in makers:
        theirs = model_of(make(0.05, global_clipnorm=0.5))
        theirs.fit(x, y, epochs=2, batch_size=8, verbose=0, shuffle=False)
        optimizer = make(0.05)
        steady = sg.attach(optimizer, clip="norm:0.5")
        ours = model_of(optimizer)
        ours.fit(x, y, epochs=2, batch_size=8, verbose=0, shuffle=False)
        close(weights(ours), weights(theirs), rtol=1e-5)
        assert steady.clip_rate > 0.5
        assert steady.last.step == 7


@case()
def observing_is_bit_identical():
    x, y = data()
    plain = model_of("adam")
    plain.fit(x, y, epochs=2, batch_size=8, verbose=0)
    seen = model_of("adam")
    seen.fit(x, y, epochs=2, batch_size=8, verbose=0, callbacks=[sg.GradientMonitor()])
    assert equal(weights(plain), weights(seen))
    assert "Steady" not in type(seen.optimizer).__name__


@case("tensorflow")
def observing_leaves_scaled_gradients_alone():
    import tensorflow as tf

    ways = {
        "factor": lambda grads: [0.1 * grad for grad in grads],
        "quotient": lambda grads: [grad / 3.0 for grad in grads],
        "global norm": lambda grads: tf.clip_by_global_norm(grads, 1.0)[0],
    }

    class Scaling(keras.Model):
        def train_step(self, batch):
            with tf.GradientTape() as tape:
                loss = self.compute_loss(y=batch[1], y_pred=self(batch[0], training=True))
            grads = self.scale(tape.gradient(loss, self.trainable_variables))
            self.optimizer.apply_gradients(zip(grads, self.trainable_variables, strict=True))
            return {"norm": tf.linalg.global_norm(grads)} if self.tells else {"loss": loss}

    def trained(scale, more, callbacks=(), tells=False):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((4,))
        hidden = keras.layers.Dense(5, activation="tanh")(inputs)
        model = Scaling(inputs, keras.layers.Dense(1)(hidden))
        model.scale, model.tells = scale, tells
        optimizer = keras.optimizers.SGD(0.013, **more)
        model.compile(optimizer=optimizer, loss="mse", jit_compile=False)
        x, y = data()
        fitted = model.fit(
            x, y, epochs=4, batch_size=8, verbose=0, shuffle=False, callbacks=[*callbacks]
        )
        return weights(model), fitted.history

    norms = []
    each = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: norms.append((logs["grad_norm"], logs["norm"]))
    )
    for name, more, tells in (
        ("global norm", {}, False),
        ("quotient", {}, True),
        ("factor", {"loss_scale_factor": 3.0}, False),
        ("factor", {"gradient_accumulation_steps": 2}, False),
    ):
        monitors = [sg.GradientMonitor(), *[each] * tells]
        plain, _ = trained(ways[name], more, tells=tells)
        seen, told = trained(ways[name], more, monitors, tells)
        assert equal(plain, seen), (name, more)
        assert len(told["grad_norm"]) == 4
    close(*zip(*norms, strict=True), rtol=1e-6)


@case()
def recovery_heals_and_changes_nothing_else():
    faults = {35: "weight", 43: "spike"}

    def trained(recover, fault=False, path=None):
        keras.utils.set_random_seed(0)
        layers = [
            keras.layers.Dense(5),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.1),
        ]
        model = keras.Sequential([keras.Input((4,)), *layers, keras.layers.Dense(1)])
        optimizer = keras.optimizers.Adam(0.01)
        model.compile(optimizer=optimizer, loss="mse")
        more = {"recover": recover} if recover else {}
        steady = sg.attach(optimizer, "norm:5.0", model=model, run=path, **more)
        x, y = data(80)
        x[20 * fault, 0] = np.nan if fault else x[20 * fault, 0]  # batch 1 of each epoch
        kernel, last = model.layers[0].kernel, model.layers[-1].kernel

        class Faults(keras.callbacks.Callback):
            steps = 0

            def on_train_batch_end(self, batch, logs=None):
                self.steps += 1
                kind = faults.get(self.steps) if fault else None
                if kind == "weight":
                    kernel.assign(keras.ops.convert_to_numpy(kernel) * np.nan)
                elif kind:
                    last.assign(last * 1e4)

        monitor = sg.GradientMonitor(steady)
        history = model.fit(
            x, y, batch_size=16, epochs=10, verbose=0, shuffle=False, callbacks=[monitor, Faults()]
        )
        recoveries, losses = steady.recoveries, history.history["loss"]
        config = optimizer.get_config()["steadygrad"]
        if recover and not fault and keras.backend.backend() == "torch":  # the others save alike
            steady.hook.state.set_gates({"recovery_limit": -1.0})
            file = tempfile.mkdtemp() + "/m.keras"
            model.save(file)
            loaded = keras.models.load_model(file).optimizer
            gate = [v for v in loaded.variables if "recovery_limit" in v.path]
            assert config["gated"]
            assert [float(keras.ops.convert_to_numpy(v.value)) for v in gate] == [np.inf]
        steady.detach()
        return weights(model), recoveries, losses

    plain, _, losses = trained(None)
    guarded, none, same = trained("auto+snapshots:stride=7")
    assert none == []
    assert equal(plain, guarded)
    assert losses == same
    path = tempfile.mkdtemp() + "/run.db"
    healed, told, losses = trained("auto+snapshots:stride=7", fault=True, path=path)
    assert all(np.isfinite(w).all() for w in healed)
    assert np.isfinite(losses).all()
    acts = {act.step: (act.act, act.trigger) for act in told}
    assert [acts[step] for step in (1, 6, 11, 16, 21, 26, 31)] == [("skip", "loss not finite")] * 7
    assert acts[35] == ("rollback", "weights not finite")
    assert next(act for act in told if act.step == 35).to_step < 35
    assert acts[43] == ("skip", "norm spike")
    assert any(act.act == "rollback" and act.step > 43 for act in told)
    events = [e for e in steadygrad.open_run(path).events if e.kind == "recovery"]
    assert [e.step for e in events] == [act.step for act in told]
    assert "SG206" in {f.id for f in steadygrad.diagnose(path)}


@case("torch")
def recovery_lowers_the_rate_and_gives_it_back():
    optimizer = keras.optimizers.SGD(0.5)
    model = model_of(optimizer)
    recovery = sg.attach(optimizer, model=model, recover="auto")._recovery
    model.train_on_batch(*data())
    before, _ = recovery.training.capture()
    rates = []
    for factor in (0.5, 0.25, 1.0, 0.5):
        ahead = recovery._ahead._replace(lr_factor=factor)
        recovery._set_rate(ahead)
        recovery._ahead = ahead
        recovery.training.put_back(before)  # a rollback while the rate is lower leaves it so
        rates.append(float(keras.ops.convert_to_numpy(optimizer.learning_rate)))
    assert rates == [0.25, 0.125, 0.5, 0.25]
    optimizer.learning_rate = 0.75  # the script's own word is the last
    recovery._set_rate(ahead._replace(lr_factor=1.0))
    assert float(keras.ops.convert_to_numpy(optimizer.learning_rate)) == 0.75


@case("torch")
def recovery_leaves_overflows_to_a_scaler_alone():
    optimizer = keras.optimizers.SGD(0.5, loss_scale_factor=8.0)  # which looks after nothing
    model = model_of(optimizer)
    steady = sg.attach(optimizer, model=model, recover="auto")
    trained = model.trainable_variables
    optimizer.build(trained)
    optimizer.apply([keras.ops.full(v.shape, np.nan) for v in trained], trained)
    steady.record(1.0, again=lambda: False)
    told = [str(a) for a in steady.recoveries]
    assert told == ["step 0: gradients not finite, persistent: skip"]


@case()
def recovery_of_what_cannot_be_is_refused():
    optimizer = keras.optimizers.SGD(0.1)
    expect(UsageError, "model=model", lambda: sg.attach(optimizer, recover="auto"))
    model = model_of(optimizer)
    for words, more in (
        ("on_nonfinite", {"on_nonfinite": "zero"}),
        ("folder", {"recover": "auto+snapshots:somewhere"}),
    ):
        options = {"model": model, "recover": "auto", **more}
        expect(UsageError, words, lambda options=options: sg.attach(optimizer, **options))
    steady = sg.attach(optimizer, model=model, recover="auto")
    model.fit(*data(), verbose=0)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        steady.detach()
    assert any("judged no step" in str(w.message) for w in told)


@case()
def clip_groups_for_nothing_are_told():
    def told(clip):
        optimizer = keras.optimizers.SGD(0.1)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            sg.attach(optimizer, clip=clip)
            optimizer.build([keras.Variable(np.zeros(2), name="kernel")])
        told = [str(w.message) for w in caught if w.category is NoGradientsWarning]
        return [words for words in told if "took no step" not in words]  # others are gone, unused

    (pattern,) = told({"krenel": "norm:1.0", "*": "none"})
    assert "'krenel' matches none of the 1 parameters" in pattern
    assert "'kernel'" in pattern
    assert "@Muon is for a SGD" in told({"@Muon": "norm:1.0"})[0]
    assert told({"@Muon": "none", "kernel": "norm:1.0"}) == []
    optimizer = keras.optimizers.SGD(0.1)
    expect(SpecError, "by variable path", lambda: sg.attach(optimizer, clip={"@group:a": "none"}))
    x, y = data()
    other = sg.attach(keras.optimizers.Adam())
    for steady, words in (
        (other, "the Adam that steadygrad is attached to took no step"),
        (None, ""),
    ):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            monitor = sg.GradientMonitor(steady)
            model_of(keras.optimizers.SGD(0.01)).fit(x, y, verbose=0, callbacks=[monitor])
        told = [str(w.message) for w in caught if w.category is NoGradientsWarning]
        told = [sentence for sentence in told if "in fit" in sentence]  # others are gone, unused
        assert len(told) == bool(words), told
        assert all(words in sentence for sentence in told), told


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
    stateful = ["auto", "spam"]
    if keras.backend.backend() != "jax":  # which compiles each; their steps: tests/conformance
        stateful += ["adagc", "autoclip:10", "skip+norm:1.0", "update-rms", "norm-schedule:5.0"]
    for spec in stateful:
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


@case()
def a_window_is_skipped_whole():
    optimizer = keras.optimizers.Adam(0.1, gradient_accumulation_steps=2)
    steady, weight = pair(optimizer, "skip:window=3,after=3+norm:100.0")
    for size in (3.0, 3.1, 3.2, 3.3, 3.4, 3.5):
        optimizer.apply([tensor([size, 4.0])], [weight])
    assert steady.last.step == 2
    before, slots = value(weight).copy(), own(optimizer)
    optimizer.apply([tensor([3.0, 4.0])], [weight])
    optimizer.apply([tensor([1e6, 0.0])], [weight])
    assert (steady.last.action, steady.last.step) == ("skip", 3)
    assert equal([before], [value(weight)])
    assert equal(slots, own(optimizer))  # iterations and sums as at the window's start
    optimizer.apply([tensor([3.0, 4.0])], [weight])
    assert equal([before], [value(weight)])
    optimizer.apply([tensor([3.0, 4.0])], [weight])
    assert not equal([before], [value(weight)])
    assert (steady.last.action, steady.last.step) == ("none", 4)


@case()
def accumulation_in_fit_equals_plain_clipping_of_the_average():
    x, y = data()
    kept = []
    for ours in (False, True):
        own_clip = {} if ours else {"global_clipnorm": 0.5}
        optimizer = keras.optimizers.SGD(0.05, gradient_accumulation_steps=2, **own_clip)
        if ours:
            steady = sg.attach(optimizer, clip="norm:0.5")
        model = model_of(optimizer)
        model.fit(x, y, epochs=2, batch_size=8, verbose=0, shuffle=False)
        kept.append(weights(model))
    close(*kept, rtol=1e-5)
    assert steady.last.step == 3
    assert steady.clip_rate > 0


@case()
def raising_names_the_tensors_and_leaves_the_weights():
    steady, weight = pair(keras.optimizers.SGD(1.0), on_nonfinite="raise")
    if keras.backend.backend() == "torch" or keras.backend.backend() == "tensorflow":
        go = lambda: steady.optimizer.apply([tensor([np.nan, 4.0])], [weight])  # noqa: E731
        expect(NonFiniteError, "1 of 2 elements", go)
        assert value(weight).tolist() == [1.0, -2.0]
        steady.optimizer.apply([tensor([3.0, 4.0])], [weight])
        steady.check()
    x, y = data()
    folder = tempfile.TemporaryDirectory()
    for more, run in (({}, folder.name + "/run.db"), ({"gradient_accumulation_steps": 2}, None)):
        optimizer = keras.optimizers.SGD(0.05, **more)
        steady = sg.attach(optimizer, on_nonfinite="raise", run=run)
        model = model_of(optimizer)
        bad = x.copy()
        bad[9] = np.nan
        fit = functools.partial(model.fit, bad, y, batch_size=8, verbose=0, shuffle=False)
        monitor = sg.GradientMonitor(steady)
        expect(NonFiniteError, "dense", functools.partial(fit, callbacks=[monitor]))
        assert all(np.isfinite(w).all() for w in weights(model))
        steady.check()  # told once
        steady.detach()
    written = steadygrad.open_run(folder.name + "/run.db").steps.action.tolist()
    at_once = keras.backend.backend() == "torch"  # `apply` raises, and `fit` is over
    assert [action == "skip" for action in written] == ([False] if at_once else [False, True])


@case("tensorflow", "torch")
def loss_scale_optimizer_in_a_loop():
    # on JAX, Keras' own LossScaleOptimizer.apply leaks tracers: only `fit` can use it there
    inner = keras.optimizers.SGD(1.0)
    scaler = keras.optimizers.LossScaleOptimizer(inner, initial_scale=8.0, dynamic_growth_steps=2)
    steady, weight = pair(scaler)
    outer = steady._outer
    for _ in range(2):
        outer.apply([tensor([24.0, 32.0])], [weight])
    close([value(weight)], [np.array([-0.2, -3.6])])
    assert steady.last.norm == 5.0
    assert steady.last.loss_scale == 8.0  # which has been doubled since
    before = value(weight).copy()
    outer.apply([tensor([np.inf, 32.0])], [weight])
    assert equal([before], [value(weight)])
    assert steady.last.action == "skip"
    assert steady.last.step == 2
    assert steady.last.loss_scale == 16.0  # and this one halved
    outer.apply([tensor([24.0, 32.0])], [weight])
    assert (steady.last.loss_scale, steady.last.norm) == (8.0, 5.0)


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
    assert steady.last.loss_scale == 8.0
    model.fit(x + np.nan, y, epochs=1, batch_size=16, verbose=0)
    assert steady.last.step == 9
    assert steady.last.action == "skip"
    assert steady.last.loss_scale == 4.0  # in force at the second that was dropped
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
def what_nothing_is_done_with_is_told():
    x, y = data()

    def told(act, category=NoGradientsWarning):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            gc.collect()
            caught.clear()
            act()
            gc.collect()
        return [str(w.message) for w in caught if w.category is category]

    frozen = model_of("sgd")
    frozen.trainable = False
    frozen.compile(optimizer=keras.optimizers.SGD(0.1), loss="mse")
    for model in (frozen, None):
        optimizer = keras.optimizers.SGD(0.1)
        frozen.compile(optimizer=optimizer, loss="mse")

        def train(optimizer=optimizer, model=model):
            with sg.attach(optimizer, model=model):
                frozen.fit(x, y, batch_size=16, verbose=0)

        (sentence,) = told(train)
        assert "model.trainable_variables" in sentence or "layer.trainable" in sentence, sentence
    frozen.compile(optimizer="sgd", loss="mse")
    with observed() as session:
        frozen.fit(x, y, verbose=0)
    (sentence,) = session.troubles
    assert "layer.trainable = True" in sentence, sentence
    (sentence,) = told(lambda: frozen.fit(x, y, verbose=0, callbacks=[sg.GradientMonitor()]))
    assert "layer.trainable = True" in sentence, sentence
    steady, weight = pair(keras.optimizers.SGD(0.1))
    expect(UsageError, "no step yet", lambda: steady.last)
    assert not told(lambda: steady.optimizer.apply([tensor([3.0, 4.0])], [weight]))
    (sentence,) = told(lambda: steady.record() or steady.record(), SteadyGradWarning)
    assert "run='run.db'" in sentence, sentence
    steady = sg.attach(keras.optimizers.SGD(0.1), recover="auto", model=model_of("sgd"))
    (sentence,) = told(lambda: steady.record(1.0) or steady.record(1.0))
    assert "took no step" in sentence, sentence
    (sentence,) = told(lambda: sg.attach(keras.optimizers.Adam()) and None)
    assert "the Adam that steadygrad is attached to took no step" in sentence, sentence
    expect(UsageError, "model=model", lambda: sg.attach(keras.optimizers.SGD(0.1), model="m"))
    expect(UsageError, "run='run.db'", lambda: sg.attach(keras.optimizers.SGD(0.1), run=3))
    expect(UsageError, "steadygrad.keras.attach(", lambda: sg.GradientMonitor(steady=model_of))


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
    expect(UsageError, "must be", lambda: pair(keras.optimizers.SGD(0.1), on_nonfinite="rise"))
    a = keras.Variable(np.zeros(1, "float32"))
    member = keras.optimizers.SGD(1.0, gradient_accumulation_steps=2)
    if MANY is not None:
        many = MANY(lambda v: member)
        sg.attach(many)
        expect(AttachError, "accumulates gradients by itself", lambda: many.build([a]))


@case()
def multi_optimizer_is_clipped_as_one():
    if MANY is None:
        return
    a, b = keras.Variable(np.zeros(1, "float32")), keras.Variable(np.zeros(1, "float32"))
    inner = {a.path: keras.optimizers.SGD(1.0)}
    optimizer = MANY(lambda v: inner.setdefault(v.path, keras.optimizers.SGD(10.0)))
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
def an_alert_ends_a_training():
    """In `fit`, observed or with the monitor, and in a loop of one's own; the file says why."""
    from steadygrad.launch.cell import CellSession
    from steadygrad.launch.plan import Plan
    from steadygrad.runlog import TrainingStopped
    from steadygrad.sinks import record
    from steadygrad.sinks.listeners import alerts

    alerts.BROKEN_SECONDS = 0.05
    x, y = data()
    y[0] = np.nan

    class Slow(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            time.sleep(0.02)

    def fitted(*callbacks):
        model = model_of(keras.optimizers.SGD(0.01))
        callbacks = [*callbacks, Slow()]
        model.fit(x, y, epochs=100_000, batch_size=8, verbose=0, callbacks=callbacks)
        assert model.stop_training

    with tempfile.TemporaryDirectory() as folder:
        with record(folder + "/fit.db", alerts.Alerts(quiet=True, stop_on="error")) as run:
            fitted(sg.GradientMonitor(run=run))
        session = CellSession(Plan("x", cell="In[1]", out=folder + "/cell.db", stop_on="error"), "")
        session.start()
        fitted()
        session.finish()
        assert session.troubles == [], session.troubles
        stop = alerts.Alerts(quiet=True, call=lambda finding: "stop")
        with record(folder + "/loop.db", stop) as run:
            steady, weight = pair(keras.optimizers.SGD(0.1), "none", run=run)
            with contextlib.suppress(TrainingStopped):
                while True:
                    steady.optimizer.apply([tensor([np.nan, 1.0])], [weight])
                    steady.record()
                    time.sleep(0.02)
        for name in ("fit", "cell", "loop"):
            info = steadygrad.open_run(f"{folder}/{name}.db").info
            assert info["exit"] == "stopped", (name, info.get("exit"))
            assert info["stopped_by"].startswith("SG1"), info


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
            shown = dict(monitor.steady.card.figures)
            assert (shown["policy"], shown["steps"]) == ("none", "64"), shown
            assert monitor._repr_html_() == monitor.steady.card.as_html()
            assert len(monitor.steady.run) == 64
            monitor.steady.writer.close()
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
def an_observed_cell_leaves_keras_as_it_was():
    from steadygrad.keras.internals import base_optimizer
    from steadygrad.launch.cell import CellSession
    from steadygrad.launch.plan import Plan

    def parts():
        return base_optimizer().apply, keras.Model.make_train_function, type(model.optimizer)

    x, y = data()
    model = model_of(keras.optimizers.SGD(0.01))
    model.fit(x, y, batch_size=8, verbose=0)  # compiled before anybody looks
    before = parts()
    with tempfile.TemporaryDirectory() as folder:
        for clip in (None, "norm:0.01"):
            plan = Plan("x", cell="Cell In[1]", out=f"{folder}/{clip}.db", clip=clip)
            session = CellSession(plan, "")
            session.start()
            model.fit(x, y, batch_size=8, verbose=0)
            session.finish()
            model.fit(x, y, batch_size=8, verbose=0)
            run = steadygrad.open_run(session.path)
            assert session.troubles == [], session.troubles
            assert len(run) == 4
            assert (run.steps.coef < 1).tolist() == [clip is not None] * 4
            assert parts() == before


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


@functools.cache
def replicas():
    """One for all cases: collectives of a second one would take the first one's keys."""
    import tensorflow as tf

    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


@case("tensorflow")
def mirrored_replicas_reduce_first():
    import tensorflow as tf

    strategy = replicas()
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
    with strategy.scope():
        inner = keras.optimizers.SGD(1.0)
        steady = sg.attach(keras.optimizers.LossScaleOptimizer(inner, initial_scale=8.0))
        model.compile(optimizer=steady._outer, loss=lambda y, p: y * p)
    x[0] = np.inf  # of one replica: their sum tells
    bad = tf.data.Dataset.from_tensor_slices((x, np.ones((2, 1), "float32"))).batch(2)
    model.fit(bad, verbose=0)
    assert (steady.last.action, steady.last.norm) == ("skip", np.inf), steady.last


@case("tensorflow")
def a_single_replica_steps_outside_of_a_branch():
    import tensorflow as tf

    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        weight = keras.Variable(np.array([1.0, 2.0], "float32"))
        optimizer = keras.optimizers.SGD(1.0)
        optimizer.build([weight])
    steady = sg.attach(optimizer, clip="norm:1.0")

    @tf.function
    def step(gradient):
        strategy.run(lambda g: optimizer.apply_gradients([(g, weight)]), args=(gradient,))

    step(tf.constant([3.0, 4.0]))
    step(tf.constant([np.nan, 4.0]))
    close([value(weight)], [np.array([0.4, 1.2])])
    assert steady.last.action == "skip", steady.last


CHANGED = {"apply", "build", "make_train_function", "scale_loss"}
"""What `run` gives classes that have inherited it."""


@contextlib.contextmanager
def observed(clip=None):
    """This process as under `steadygrad run`; what is patched is put back."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    from steadygrad.launch import session as sessions
    from steadygrad.launch.plan import Plan

    owners = [sys.modules["keras.src.optimizers.base_optimizer"].BaseOptimizer, keras.Model]
    owners += [MANY] if MANY is not None else []
    owners += [keras.optimizers.LossScaleOptimizer, sys.modules["steadygrad.keras.hook"].Hook]
    backend = sys.modules[keras.backend.backend()]
    if backend.__name__ == "tensorflow":
        owners += [backend.GradientTape, backend.compat.v1.train.Optimizer]
        variables = sys.modules["tensorflow.python.ops.resource_variable_ops"]
        owners += [variables.BaseResourceVariable, variables.ResourceVariable]
        owners += [m for name, m in sys.modules.items() if name.split(".")[0] == "tensorflow"]
        owners += [ours(), sys.modules["steadygrad.tensorflow.dropins"]]
    elif backend.__name__ == "jax":
        owners += [backend]
    kept = [(owner, dict(vars(owner))) for owner in owners]
    session = sessions.Session(Plan(target="x.py", out=folder.name + "/run.db", clip=clip))
    if backend.__name__ == "tensorflow":
        sessions._observe_tensorflow(session, backend)
        sessions._observe_dropins(session, ours())
    sessions._observe_keras(session, keras)
    try:
        yield session
    finally:
        session._conclude()
        for owner, before in kept:
            for name, now in list(vars(owner).items()):
                if name in CHANGED or (name in before and now is not before[name]):
                    if name in before:
                        setattr(owner, name, before[name])
                    else:
                        delattr(owner, name)


def fits():
    """Ways to train, each as a name, a model and what its `fit` is told."""
    adam = keras.optimizers.Adam(1e-2, gradient_accumulation_steps=2)
    yield "accumulating", model_of(adam, norm=True), {"epochs": 2}
    fast, slow = keras.optimizers.SGD(0.1), keras.optimizers.SGD(0.01)
    if MANY is not None:
        yield "many", model_of(MANY(lambda v: fast if v.shape[-1] == 1 else slow)), {"epochs": 1}
    scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.01), initial_scale=8.0)
    yield "scaled", model_of(scaled), {"epochs": 1}
    if keras.backend.backend() != "torch":
        several = model_of(keras.optimizers.SGD(0.01))
        several.compile(optimizer=several.optimizer, loss="mse", steps_per_execution=3)
        yield "several", several, {"epochs": 2}


def trained():
    x, y = data()
    after = {}
    for name, model, more in fits():
        model.fit(x, y, batch_size=8, verbose=0, shuffle=False, **more)
        after[name] = weights(model)
    return after


@case()
def run_counts_real_steps_and_changes_nothing():
    plain = trained()
    x, y = data()
    with observed() as session:
        seen = trained()
    assert session.troubles == [], session.troubles
    run = steadygrad.open_run(session.path)
    for name, was in plain.items():
        assert equal(was, seen[name]), name
    of = [run.steps[run.steps["optimizer"] == i] for i in range(len(run.info["optimizers"]))]
    expected = {"accumulating": [4], "many": [4, 4], "scaled": [4], "several": [8]}
    assert [len(steps) for steps in of] == [n for name in plain for n in expected[name]]
    for steps in of:
        assert steps["step"].tolist() == list(range(len(steps)))
        assert np.isfinite(steps["loss"]).all()
        assert set(steps["action"]) == {"none"}
    parts = iter(of)
    steps_of = {name: [next(parts) for _ in expected[name]] for name in plain}
    (accumulated,), (scaled,) = steps_of["accumulating"], steps_of["scaled"]
    start = model_of("sgd")
    first = start.evaluate(x[:16], y[:16], verbose=0)  # two micro-batches of 8
    assert abs(accumulated["loss"][0] / first - 1) < 1e-5
    assert abs(scaled["loss"][0] / start.evaluate(x[:8], y[:8], verbose=0) - 1) < 1e-5
    whole = keras.optimizers.SGD(0.0)
    steady = sg.attach(whole, clip="none")
    model_of(whole).fit(x[:16], y[:16], batch_size=16, verbose=0)
    assert abs(accumulated["norm"][0] / steady.last.norm - 1) < 1e-5
    if MANY is not None:
        one, other = steps_of["many"]
        assert one["loss"].tolist() == other["loss"].tolist()
        joined = np.hypot(one["norm"][0], other["norm"][0])
        assert np.allclose(joined, scaled["norm"][0], rtol=1e-5)
    sampled, norms = run.samples("weight_norm")
    first = ~np.isnan(norms[:, 0])  # other optimizers' tensors have other rows
    assert sampled[first].tolist() == [0, 1, 2, 4], sampled
    close(norms[first][0, :4], [np.linalg.norm(w) for w in weights(start)])
    steps, ratios = run.samples("update_ratio")
    first = ~np.isnan(ratios[:, 0])
    assert steps[first].tolist() == [0, 1, 2]
    assert (ratios[first][:, 0] > 0).all()
    assert {t.module for t in run.tensors} == {"Dense"}


def by_numpy(start, x, y, clip):
    """Norms and weights of SGD on batches of 8 in float64; a step that overflows is left out."""
    parameters, norms = [np.array(w, np.float64) for w in start], []
    for rows, targets in zip(x.reshape(-1, 8, 4), y.reshape(-1, 8, 1), strict=True):
        kernel, bias, out, last = parameters
        with np.errstate(invalid="ignore"):
            hidden = np.tanh(rows.astype(np.float64) @ kernel + bias)
            error = (hidden @ out + last - targets) / 4  # of the mean over 8 rows
            inward = error @ out.T * (1 - hidden**2)
            grads = [rows.T @ inward, inward.sum(0), hidden.T @ error, error.sum(0)]
            norms.append(np.sqrt(sum(np.sum(g**2) for g in grads)))
        if np.isfinite(norms[-1]):
            rate = 0.01 * min(1, clip / norms[-1])
            parameters = [p - rate * g for p, g in zip(parameters, grads, strict=True)]
    return norms, parameters


@case()
def a_scaler_that_compiling_adds_is_found():
    x, y = data()
    x[9] = np.inf
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        optimizer = keras.optimizers.SGD(0.01)
        steady = sg.attach(optimizer, clip="norm:0.5")
        model = model_of(optimizer)
    finally:
        keras.config.set_dtype_policy(policy)
    monitor = sg.GradientMonitor(steady)
    model.fit(x, y, batch_size=8, verbose=0, shuffle=False, callbacks=[monitor])
    assert model.optimizer is not optimizer
    assert steady.last.step == 3, steady.last
    assert steady.hook.state.seen()["skipped"] > 0
    assert steady.last.loss_scale < 2.0**15
    steady.detach()
    assert type(model.optimizer) is keras.optimizers.LossScaleOptimizer


@case()
def run_tells_what_a_scaler_drops():
    x, y = data()
    x[9] = np.inf

    def train():
        inner = keras.optimizers.SGD(0.01)
        model = model_of(keras.optimizers.LossScaleOptimizer(inner, initial_scale=1024.0))
        start = weights(model)
        model.fit(x, y, batch_size=8, verbose=0, shuffle=False)
        return start, weights(model)

    start, plain = train()
    for clip, limit in ((None, np.inf), ("norm:0.5", 0.5)):
        with observed(clip) as session:
            after = train()[1]
        assert session.troubles == [], session.troubles
        assert clip or equal(after, plain)
        norms, expected = by_numpy(start, x, y, limit)
        close(after, expected)
        steps = steadygrad.open_run(session.path).steps
        acted = "clip" if clip else "none"
        assert steps.action.tolist() == [acted, "skip", acted, acted]
        assert steps.loss_scale.tolist() == [1024.0, 1024.0, 512.0, 512.0]
        assert np.allclose(steps.norm, norms, rtol=1e-5, equal_nan=True), (steps.norm, norms)
        assert np.isnan(steps.loss).tolist() == [False, True, False, False]
        assert np.allclose(steps.coef[2:], np.minimum(1, limit / np.array(norms[2:])), rtol=1e-5)


@case()
def run_clips_many_optimizers_and_windows():
    x, y = data()
    start = weights(model_of("sgd"))
    with observed(clip="norm:0.01") as session:
        one, other = keras.optimizers.SGD(1.0, clipnorm=3.0), keras.optimizers.SGD(1.0)
        model = model_of(MANY(lambda v: one if v.shape[-1] == 1 else other) if MANY else one)
        name = type(model.optimizer).__name__
        model.fit(x, y, batch_size=32, verbose=0)
        joined = np.sqrt(
            sum(np.sum((a - b) ** 2) for a, b in zip(start, weights(model), strict=True))
        )
        assert abs(joined / 0.01 - 1) < 1e-3, joined
        bad = x.copy()
        bad[12] = np.nan
        model = model_of(keras.optimizers.SGD(1.0, gradient_accumulation_steps=3))
        model.fit(bad, y, batch_size=8, verbose=0, shuffle=False)
        moved = np.sqrt(
            sum(np.sum((a - b) ** 2) for a, b in zip(start, weights(model), strict=True))
        )
        assert abs(moved / 0.01 - 1) < 1e-3, moved
    assert session.troubles == ["SGD's own clipnorm=3.0 was replaced by --clip"]
    run = steadygrad.open_run(session.path)
    assert [o["class"] for o in run.info["optimizers"]] == [name, "SGD"]
    assert run.steps["action"].tolist() == ["clip", "skip", "clip"]
    assert np.isfinite(run.steps["loss"]).tolist() == [True, False, True]


@case()
def run_records_broken_steps():
    x, y = data()
    x[12] = np.nan
    plain = model_of(keras.optimizers.SGD(0.1))
    plain.fit(x, y, batch_size=8, verbose=0, shuffle=False)
    with observed() as session:
        seen = model_of(keras.optimizers.SGD(0.1))
        seen.fit(x, y, batch_size=8, verbose=0, shuffle=False)
    assert session.troubles == [], session.troubles
    for was, now in zip(weights(plain), weights(seen), strict=True):
        assert np.array_equal(was, now, equal_nan=True)
    run = steadygrad.open_run(session.path)
    assert run.steps.step.tolist() == [0, 1, 2, 3]
    assert set(run.steps.action) == {"none"}
    assert run.steps.coef.tolist() == [1.0] * 4
    assert np.isfinite(run.steps.norm).tolist() == [True, False, False, False]
    assert (run.steps.nonfinite > 0).tolist() == [False, True, True, True]
    assert run.tensor_nonfinite[:2].sum(1).tolist() == run.steps.nonfinite[:2].tolist()


def diagnosed(layers, optimizer, spoil=lambda model: None):
    """The ids of what the rules say of a training under `run`."""
    steps, rows, rng = 40, 128, np.random.default_rng(2)
    x = rng.standard_normal((steps * rows, *layers[0].shape[1:])).astype("float32")
    y = np.tanh(x.reshape(len(x), -1)[:, :8].sum(1, keepdims=True))
    keras.utils.set_random_seed(0)
    model = keras.Sequential(layers)
    spoil(model)
    model.compile(optimizer=optimizer, loss="mse", jit_compile=keras.backend.backend() == "jax")
    with observed() as session:
        model.fit(x, y, batch_size=rows, shuffle=False, verbose=0)
    assert session.troubles == [], session.troubles
    return [finding.id for finding in steadygrad.diagnose(session.path)]


def stack(depth, act="relu", start="he_normal"):
    dense = functools.partial(keras.layers.Dense, kernel_initializer=start)
    return [keras.Input((8,)), *(dense(16, activation=act) for _ in range(depth)), dense(1)]


def recurrent(gain):
    def turning(shape, dtype=None):
        turned, _ = np.linalg.qr(np.random.default_rng(4).standard_normal(shape))
        return keras.ops.convert_to_tensor(gain * turned, dtype)

    cell = keras.layers.SimpleRNN(
        12, activation="relu" if gain > 1 else "tanh", recurrent_initializer=turning
    )
    near_zero = keras.initializers.RandomNormal(stddev=0.05, seed=1)
    return [keras.Input((24, 2)), cell, keras.layers.Dense(1, kernel_initializer=near_zero)]


@case("torch")
def rules_on_weights_speak_of_an_observed_run():
    adam, sgd = keras.optimizers.Adam, keras.optimizers.SGD

    def broken(model):
        first = np.full(model.trainable_weights[0].shape, 0.1, "float32")
        first[0, 3] = np.nan
        model.trainable_weights[0].assign(first)

    constant = keras.initializers.Constant(0.1)
    assert diagnosed(stack(2, start=constant), adam(1e-2)) == ["SG501"]
    assert diagnosed(stack(2), adam(3.0)) == ["SG502"]
    assert "SG204" in diagnosed(recurrent(2.5), sgd(1e-4))
    assert diagnosed(stack(2, start="zeros"), sgd(1e-2)) == ["SG501"]
    assert diagnosed(stack(9, "sigmoid", "glorot_normal"), sgd(0.1)) == ["SG301"]
    assert diagnosed(recurrent(0.3), sgd(0.1)) == ["SG305"]
    assert diagnosed(stack(2), adam(1e-2), broken) == ["SG103"]
    assert diagnosed(stack(2), adam(1e-2)) == []
    assert diagnosed(recurrent(1.0), adam(1e-2)) == []


@case("jax")
def run_hears_losses_of_its_own_trace():
    import jax

    def trained(has_aux):
        weight, optimizer = keras.Variable(np.ones(2, "float32")), keras.optimizers.SGD(1.0)
        optimizer.build([weight])

        def loss_of(w, x):
            loss = jax.numpy.sum(w * x)
            return (loss, {}) if has_aux else loss

        def step(values, slots, x, wrap):
            loss, grad = wrap(jax.value_and_grad(loss_of, 0, has_aux))(values, x)
            values, slots = optimizer.stateless_apply(
                slots, [grad.reshape(-1, 2).mean(0)], [values]
            )
            return loss, values[0], slots

        values, slots = weight.value, [v.value for v in optimizer.variables]
        each = functools.partial(jax.vmap, in_axes=(None, 0))
        for compiled in (step, jax.jit(step, static_argnums=3)):
            for wrap, x in ((lambda f: f, [3.0, 4.0]), (jax.jit, [3.0, 4.0])):
                _, values, slots = compiled(values, slots, tensor(x), wrap)
            _, values, slots = compiled(values, slots, tensor([[3.0, 4.0], [3.0, 4.0]]), each)
        return np.array(values)

    for has_aux in (False, True):
        plain = trained(has_aux)
        with observed() as session:
            seen = trained(has_aux)
        assert session.troubles == [], session.troubles
        assert equal([plain], [seen])
        run = steadygrad.open_run(session.path)
        assert run.steps.norm.tolist() == [5.0] * 6
        # `value_and_grad` inside of another trace: what it saw has no value where the step is
        close([run.steps.loss[[0, 3]]], [np.array([7.0, -68.0])])
        assert np.isnan(run.steps.loss[[1, 2, 4, 5]]).all(), run.steps.loss


def by_global_norm(grads, limit):
    total = np.sqrt(sum(np.sum(g**2) for g in grads))
    return [g * min(1.0, limit / total) for g in grads]


def by_norm(grads, limit):
    return [g * min(1.0, limit / np.linalg.norm(g)) for g in grads]


def by_value(grads, limit):
    return [np.clip(g, -limit, limit) for g in grads]


KEYWORDS = {"global_clipnorm": by_global_norm, "clipnorm": by_norm, "clipvalue": by_value}


def oracle_norms(rate, clip=lambda grads: grads):
    """In float64 with NumPy alone: the norm before clipping at each step of `model_of`'s SGD."""
    kernel, bias, out, shift = (w.astype(np.float64) for w in weights(model_of("sgd")))
    norms = []
    for x, y in zip(*(np.split(part.astype(np.float64), 4) for part in data()), strict=True):
        hidden = np.tanh(x @ kernel + bias)
        error = 2.0 * (hidden @ out + shift - y) / len(x)
        back = error @ out.T * (1.0 - hidden**2)
        grads = [x.T @ back, back.sum(0), hidden.T @ error, error.sum(0)]
        norms.append(np.sqrt(sum(np.sum(g**2) for g in grads)))
        steps = [rate * g for g in clip(grads)]
        kernel, bias = kernel - steps[0], bias - steps[1]
        out, shift = out - steps[2], shift - steps[3]
    return norms


@case()
def run_records_what_keras_clips_by_itself():
    x, y = data()
    for keyword, clip in KEYWORDS.items():
        limits = {keyword: 0.05}

        def fitted(limits=limits):
            model = model_of(keras.optimizers.SGD(0.1, **limits))
            model.fit(x, y, batch_size=8, verbose=0, shuffle=False)
            return weights(model)

        plain = fitted()
        with observed() as free:
            fitted({})
        with observed() as session:
            assert equal(plain, fitted()), keyword
        assert session.troubles == [], session.troubles
        run, unclipped = steadygrad.open_run(session.path), steadygrad.open_run(free.path)
        close([unclipped.steps.norm], [oracle_norms(0.1)], rtol=1e-5)
        before_clip = oracle_norms(0.1, functools.partial(clip, limit=0.05))
        close([run.steps.norm], [before_clip], rtol=1e-5)
        assert run.steps.threshold.tolist() == [np.float32(0.05)] * 4 or set(
            run.steps.threshold
        ) == {0.05}
        assert set(run.steps.action) == {"clip"}, keyword
        assert (run.steps.coef < 0.2).all(), run.steps.coef
        if keyword == "global_clipnorm":
            close([run.steps.coef], [0.05 / run.steps.norm])
            assert set(run.steps.cosine) == {1.0}
        else:
            assert (run.steps.cosine < 1).all()
        assert {place["call"] for place in run.info["clip_calls"]} == {keyword}


@case()
def run_records_what_a_script_attaches_before_it_clips():
    x, y = data()
    bad = x.copy()
    bad[20] = np.nan

    def fitted(inputs, optimizer):
        steady = sg.attach(optimizer, clip="norm:0.05")
        model = model_of(optimizer)
        model.fit(inputs, y, batch_size=8, verbose=0, shuffle=False)
        steady.detach()
        return weights(model)

    def all_fitted():
        one, other, third, fourth = (keras.optimizers.SGD(0.1) for _ in range(4))
        scaled = keras.optimizers.LossScaleOptimizer(one, initial_scale=8.0)
        many = MANY(lambda v: third if v.shape[-1] == 1 else fourth) if MANY else third
        return [fitted(x, scaled), fitted(bad, other), fitted(x, many)]

    plain = all_fitted()
    with observed() as session:
        seen = all_fitted()
    assert session.troubles == [], session.troubles
    assert all(map(equal, plain, seen))
    run = steadygrad.open_run(session.path)
    name = "MultiOptimizer" if MANY else "SGD"
    assert [o["class"] for o in run.info["optimizers"]] == ["SGD", "SGD", name]
    clip = functools.partial(by_global_norm, limit=0.05)
    for number in (0, 2):
        steps = run.steps[run.steps["optimizer"] == number]
        close([steps["norm"]], [oracle_norms(0.1, clip)], rtol=1e-5)
        close([steps["coef"]], [0.05 / steps["norm"]], rtol=1e-5)
        assert set(steps["action"]) == {"clip"}
    broken = run.steps[run.steps["optimizer"] == 1]
    assert broken["action"].tolist() == ["clip", "clip", "skip", "clip"]
    assert np.isfinite(broken["norm"]).tolist() == [True, True, False, True]


def ours():
    import steadygrad.tensorflow as functions

    return functions


CLIPS = {
    "global": lambda tf, g: tf.clip_by_global_norm(g, 1.0)[0],
    "with a norm": lambda tf, g: tf.clip_by_global_norm(g, 1.0, use_norm=tf.linalg.global_norm(g))[
        0
    ],
    "each": lambda tf, g: [tf.clip_by_norm(t, 0.5) for t in g],
    "value": lambda tf, g: [tf.clip_by_value(t, -0.1, 0.1) for t in g],
    "global of ours": lambda tf, g: ours().clip_by_global_norm(g, 1.0)[0],
    "each of ours": lambda tf, g: [ours().clip_by_norm(t, 0.5) for t in g],
    "value of ours": lambda tf, g: [ours().clip_by_value(t, -0.1, 0.1) for t in g],
    "part": lambda tf, g: [*tf.clip_by_global_norm(g[:2], 1.0)[0], *g[2:]],
    "twice": lambda tf, g: tf.clip_by_global_norm(tf.clip_by_global_norm(g, 2.0)[0], 1.0)[0],
    "thrown away": lambda tf, g: tf.clip_by_global_norm(g, 1.0) and g,
    "scaled": lambda tf, g: [0.1 * t for t in g],
    "divided": lambda tf, g: [t / 3.0 for t in g],
}
RULES = {"value": "SG403", "part": "SG408", "twice": "SG409", "late": "SG405"}


@case("tensorflow")
def run_sees_clips_by_hand_and_changes_nothing():
    import tensorflow as tf

    def trained(clip, compiled, late=False):
        model = model_of("sgd")
        x, y = data()
        optimizer = keras.optimizers.SGD(0.01)

        def step():
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((model(3.0 * x) - 5.0 * y) ** 2)
            raw = tape.gradient(loss, model.trainable_variables)
            given = clip(tf, raw)
            optimizer.apply_gradients(zip(given, model.trainable_variables, strict=True))
            if late:
                tf.clip_by_global_norm(given, 1.0)
            return raw, given

        step = tf.function(step) if compiled else step
        norms = []
        for _ in range(4):
            raw, given = step()
            wide = [[t.numpy().astype(np.float64) for t in ts] for ts in (raw, given)]
            norms.append([np.sqrt(sum((t**2).sum() for t in ts)) for ts in wide])
        return np.array(norms).T, weights(model)

    for compiled in (False, True):
        for name, clip in {**CLIPS, "late": lambda tf, g: g}.items():
            tells = functools.partial(trained, clip, compiled, name == "late")
            (raw, given), plain = tells()
            with observed() as session:
                _, seen = tells()
            assert session.troubles == [], (name, session.troubles)
            assert equal(plain, seen), (name, compiled)
            run = steadygrad.open_run(session.path)
            by_hand = name in ("scaled", "divided")
            close([run.steps.norm], [given if by_hand else raw], rtol=1e-5)
            if by_hand or name in ("thrown away", "late"):
                assert set(run.steps.threshold) == {np.inf}
                assert set(run.steps.action) == {"none"}
            else:
                close([run.steps.coef], [given / raw], rtol=1e-5)
                assert np.isfinite(run.steps.threshold).all()
                assert set(run.steps.action) == {"clip"}
            if not by_hand:
                assert any(event.kind == "script_clip" for event in run.events), name
            if name in RULES:
                ids = [finding.id for finding in steadygrad.diagnose(run)]
                assert RULES[name] in ids, (name, compiled, ids)
        with observed("norm:0.5") as session:
            (raw, _), _ = trained(CLIPS["global"], compiled)
        assert session.troubles == ["tf.clip_by_global_norm was replaced by --clip"]
        run = steadygrad.open_run(session.path)
        close([run.steps.norm, run.steps.coef], [raw, 0.5 / raw], rtol=1e-5)


@case("tensorflow")
def run_sees_updates_by_hand_and_changes_nothing():
    import tensorflow as tf

    def trained(clip, move, compiled, passes=1):
        model = model_of("sgd")
        x, y = data()
        slots = [tf.Variable(tf.zeros(v.shape), trainable=False) for v in model.trainable_variables]

        def step():
            for _ in range(passes):
                with tf.GradientTape() as tape:
                    loss = tf.reduce_mean((model(3.0 * x) - 5.0 * y) ** 2)
                raw = tape.gradient(loss, model.trainable_variables)
            given = clip(tf, raw)
            for row in zip(model.trainable_variables, given, slots, strict=True):
                move(*row)
            return raw, loss

        step = tf.function(step) if compiled else step
        told = []
        for _ in range(6):
            raw, loss = step()
            wide = [t.numpy().astype(np.float64) for t in raw]
            told.append([np.sqrt(sum((t**2).sum() for t in wide)), float(loss)])
        return np.array(told).T, weights(model)

    def plainly(variable, gradient, slot):
        variable.assign_sub(0.01 * gradient)

    def with_momentum(variable, gradient, slot):
        slot.assign(0.9 * slot + gradient)
        variable.assign(variable - 0.01 * slot)
        variable.assign(tf.clip_by_value(variable, -1.0, 1.0))  # moved again: no step

    for compiled in (False, True):
        for move, name in ((plainly, "global"), (with_momentum, "none")):
            clip = CLIPS["global"] if name == "global" else lambda tf, g: g
            (norms, losses), plain = trained(clip, move, compiled)
            with observed("norm:0.5" if compiled else None) as session:
                _, seen = trained(clip, move, compiled)
            assert equal(plain, seen), (name, compiled)
            assert len(session.troubles) == compiled, session.troubles
            assert all("not applied to updates by hand" in told for told in session.troubles)
            run = steadygrad.open_run(session.path)
            close([run.steps.norm, run.steps.loss], [norms, losses], rtol=1e-5)
            assert [o["class"] for o in run.info["optimizers"]] == ["by hand"]
            limit = 1.0 if name == "global" else np.inf
            assert set(run.steps.threshold) == {limit}
            close([run.steps.coef], [np.minimum(1.0, limit / norms)], rtol=1e-5)
            assert all(tensor.name for tensor in run.tensors)
    with observed() as session:
        trained(lambda tf, g: g, plainly, False, passes=2)
    assert session.path == ""
    assert "asked for several times" in session.troubles[0]


@case("tensorflow")
def run_takes_moves_to_another_point_for_no_steps():
    """As sharpness-aware minimisation makes them: Foret et al. (2021)."""
    import tensorflow as tf

    def trained(compiled):
        model, (x, y) = model_of("sgd"), data()
        optimizer, variables = keras.optimizers.SGD(0.01), model.trainable_variables

        def differentiated():
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((model(x) - y) ** 2)
            return loss, tape.gradient(loss, variables)

        def step():
            moves = [0.05 * gradient for gradient in differentiated()[1]]
            for variable, move in zip(variables, moves, strict=True):
                variable.assign_add(move)
            loss, gradients = differentiated()
            for variable, move in zip(variables, moves, strict=True):
                variable.assign_sub(move)
            optimizer.apply_gradients(zip(gradients, variables, strict=True))
            return loss, gradients

        told, step = [], tf.function(step) if compiled else step
        for _ in range(6):
            loss, gradients = step()
            wide = [t.numpy().astype(np.float64) for t in gradients]
            told.append([np.sqrt(sum((t**2).sum() for t in wide)), float(loss)])
        return np.array(told).T, weights(model)

    for compiled in (False, True):
        (norms, losses), plain = trained(compiled)
        with observed() as session:
            _, seen = trained(compiled)
        assert session.troubles == [], session.troubles
        assert equal(plain, seen), compiled
        run = steadygrad.open_run(session.path)
        assert {run.info["optimizers"][i]["class"] for i in run.steps.optimizer} == {"SGD"}
        close([run.steps.norm, run.steps.loss], [norms, losses], rtol=1e-5)


@case("tensorflow")
def run_hears_the_loss_of_each_optimizer():
    import tensorflow as tf

    def train(scales):
        keras.utils.set_random_seed(0)
        x, y = data(8)
        layers = [keras.layers.Dense(4), keras.layers.Dense(1)]
        optimizers = [keras.optimizers.SGD(0.01 * (1 + i)) for i in range(2)]
        if scales:
            optimizers = [keras.optimizers.LossScaleOptimizer(one, 4.0) for one in optimizers]

        @tf.function
        def step():  # both are differentiated before one steps, as in most GANs
            with tf.GradientTape(persistent=True) as tape:
                out = layers[1](layers[0](x))
                losses = [tf.reduce_mean((out - y) ** 2), 10.0 + tf.reduce_mean(tf.abs(out))]
                pairs = zip(optimizers, losses, strict=True)
                asked = [one.scale_loss(loss) for one, loss in pairs] if scales else losses
            variables = [layer.trainable_variables for layer in layers]
            pairs = zip(asked, variables, strict=True)
            gradients = [tape.gradient(loss, of) for loss, of in pairs]
            for optimizer, gradient, of in zip(optimizers, gradients, variables, strict=True):
                clipped = gradient if scales else tf.clip_by_global_norm(gradient, 0.5)[0]
                optimizer.apply_gradients(zip(clipped, of, strict=True))
            return losses

        layers[1](layers[0](x))
        said = [[float(loss) for loss in step()] for _ in range(3)]
        return said, [keras.ops.convert_to_numpy(v) for layer in layers for v in layer.variables]

    for scales in (False, True):
        said, plain = train(scales)
        with observed() as session:
            again, after = train(scales)
        assert session.troubles == [], session.troubles
        assert again == said
        assert equal(after, plain)
        steps = steadygrad.open_run(session.path).steps
        for place in range(2):
            losses = steps.loss[steps.optimizer == place]
            assert losses.tolist() == [losses[place] for losses in said], (losses, said)


@case("tensorflow")
def run_tells_what_a_scaler_drops_on_replicas():
    import tensorflow as tf

    x, y = data()
    x[8:10], x[17:20] = np.inf, 3.0  # Keras asks the first replica whether all is finite

    def train(clips, norms):
        strategy = replicas()
        with strategy.scope():
            inner = keras.optimizers.SGD(0.01)
            model = model_of(keras.optimizers.LossScaleOptimizer(inner, initial_scale=1024.0))
            optimizer = model.optimizer
        for start in range(0, 32, 8):
            a, b = x[start : start + 8], y[start : start + 8]
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((model(a) - b) ** 2)
            gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])
            norms.append(float(np.sqrt(sum(np.sum(np.square(g, dtype=float)) for g in gradients))))
            if not clips:
                model.train_on_batch(a, b)
                continue

            def step(a, b):
                with tf.GradientTape() as tape:
                    part = tf.reduce_sum((model(a) - b) ** 2) / 8
                    scaled = optimizer.scale_loss(part)
                gradients = tape.gradient(scaled, model.trainable_variables)
                limit = 0.5 * optimizer.dynamic_scale
                gradients, _ = tf.clip_by_global_norm(gradients, limit)
                optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))

            def part(values):
                def of(context):
                    return values[context.replica_id_in_sync_group :: 2]

                return strategy.experimental_distribute_values_from_function(of)

            with strategy.scope():
                optimizer.build(model.trainable_variables)
            tf.function(lambda a, b: strategy.run(step, (a, b)))(part(a), part(b))
        return weights(model)

    for clips in (False, True):
        plain = train(clips, [])
        norms = []
        with observed() as session:
            assert equal(train(clips, norms), plain)
        assert len(session.troubles) == clips, session.troubles  # coefficients are left out
        steps = steadygrad.open_run(session.path).steps
        skipped = [action == "skip" for action in steps.action]
        assert skipped == [False, True, False, False], (clips, steps.action)
        assert np.allclose(steps.norm, norms, rtol=1e-5, equal_nan=True), (clips, steps.norm, norms)
        after = 1024.0 if clips else 512.0  # called by hand, Keras' replicas do not agree on it
        assert steps.loss_scale.tolist() == [1024.0, 1024.0, after, after], steps.loss_scale


@case("tensorflow")
def run_reduces_over_replicas():
    import tensorflow as tf

    def fitted():
        strategy = replicas()
        with strategy.scope():
            model = model_of(keras.optimizers.SGD(0.1))
        x, y = data()
        batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
        first = model.evaluate(x[:8], y[:8], verbose=0)
        model.fit(batches, verbose=0)
        return weights(model), first

    plain, first = fitted()
    alone = keras.optimizers.SGD(0.1)
    steady = sg.attach(alone, clip="none")
    x, y = data()
    model_of(alone).fit(x[:8], y[:8], batch_size=8, verbose=0)
    with observed() as session:
        seen, _ = fitted()
    assert session.troubles == [], session.troubles
    run = steadygrad.open_run(session.path)
    assert equal(plain, seen)
    assert run.steps.step.tolist() == [0, 1, 2, 3]
    assert abs(run.steps.loss[0] / first - 1) < 1e-5
    assert abs(run.steps.norm[0] / steady.last.norm - 1) < 1e-5


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
    from steadygrad.errors import (
        AttachError,
        NoGradientsWarning,
        NonFiniteError,
        SpecError,
        SteadyGradWarning,
        UsageError,
    )

    MANY = getattr(keras.optimizers, "MultiOptimizer", None)  # newer than Keras 3.10

    if keras.backend.backend() == "tensorflow":
        import tensorflow

        cpu = tensorflow.config.list_physical_devices("CPU")[0]
        two = [tensorflow.config.LogicalDeviceConfiguration()] * 2
        tensorflow.config.set_logical_device_configuration(cpu, two)
    main()
