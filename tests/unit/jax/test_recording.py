"""A JAX run in a run file, from donated states."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import steadygrad
import steadygrad.jax as sg
from steadygrad.errors import UsageError
from steadygrad.report import write_report


def test_record_writes_every_step(tmp_path):
    params = {"w": jnp.array([3.0, 4.0]), "b": jnp.zeros(1)}
    tx = sg.guard(optax.sgd(0.1), clip="norm:1.0", details=True)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def train_step(params, state, scale):
        loss, grads = jax.value_and_grad(lambda p: scale * jnp.sum(p["w"] ** 2) / 2)(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    state = tx.init(params)
    with sg.Recorder(tmp_path / "run.db", params, info={"seed": 3}) as run:
        for scale in (1.0, np.nan, 0.1):
            params, state, loss = train_step(params, state, scale)
            sg.record(run, state, loss, lr=0.1)
    seen = steadygrad.open_run(tmp_path / "run.db")
    assert seen.info["framework"] == "jax"
    assert seen.info["seed"] == 3
    assert seen.steps.action.tolist() == ["clip", "skip", "none"]
    assert seen.steps.step.tolist() == [0, 1, 2]
    assert seen.steps.norm[0] == 5.0
    assert seen.steps.norm[2] == pytest.approx(0.49, rel=1e-6)
    assert seen.steps.loss[0] == 12.5
    assert [t.name for t in seen.tensors] == ["b", "w"]
    assert seen.tensors[1].shape == (2,)
    assert seen.tensor_nonfinite[1].tolist() == [0, 2]


def test_record_without_figures_says_what_to_type(tmp_path):
    with pytest.raises(UsageError, match="guard"):
        sg.record(tmp_path / "run.db", optax.sgd(0.1).init({}))


@pytest.mark.parametrize("rate", [0.05, 2.0], ids=["healthy", "exploding"])
def test_rules_calibration_and_report_read_a_jax_run(tmp_path, rate):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((32, 4)).astype(np.float32)
    params = {"w": jnp.zeros(4), "b": jnp.zeros(())}
    tx = sg.guard(optax.sgd(rate), clip="none", details=True)

    @jax.jit
    def train_step(params, state, batch):
        def loss_of(p):
            return jnp.mean((batch @ p["w"] + p["b"] - batch[:, 0]) ** 2)

        loss, grads = jax.value_and_grad(loss_of)(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    state, path = tx.init(params), tmp_path / "run.db"
    with sg.Recorder(path, params) as run:
        for _ in range(60):
            batch = x[rng.permutation(32)[:8]]
            params, state, loss = train_step(params, state, batch)
            sg.record(run, state, loss, lr=rate)
    found = steadygrad.diagnose(path)
    grave = [finding for finding in found if finding.severity == "error"]
    assert bool(grave) == (rate > 1), found
    code = "\n".join(fix for finding in found for fix in finding.fixes)
    assert not {"steadygrad.torch", "steadygrad.keras"} & set(code.split())
    assert ("jax" in code) == (rate > 1), code
    if rate < 1:
        assert 0 < steadygrad.calibrate(path).threshold < 10
    page = write_report([path], tmp_path / "report.html")
    assert "jax" in page.read_text()


def test_record_samples_weights_on_the_schedule(tmp_path):
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.standard_normal((70, 70)), jnp.float32), "b": jnp.ones(3)}
    tx = optax.chain(sg.clip("norm:1.0"), optax.sgd(0.5))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def train_step(params, state):
        grads = jax.tree.map(lambda p: p / 10, params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state, kept = tx.init(params), []
    with sg.Recorder(tmp_path / "run.db", params) as run:
        for _ in range(10):
            kept.append({k: np.array(v, np.float64) for k, v in params.items()})
            params, state = train_step(params, state)
            sg.record(run, state, params=params)
    seen = steadygrad.open_run(tmp_path / "run.db")
    steps, norms = seen.samples("weight_norm")
    assert steps.tolist() == [0, 1, 2, 4, 8]
    names = [t.name for t in seen.tensors]
    want = [[np.linalg.norm(kept[step][name]) for name in names] for step in steps]
    np.testing.assert_allclose(norms, want, rtol=1e-6)
    steps, ratios = seen.samples("update_ratio")
    assert steps.tolist() == [0, 1, 2, 4, 8]
    first = [np.linalg.norm(kept[1][n] - kept[0][n]) / np.linalg.norm(kept[0][n]) for n in names]
    assert ratios[0][names.index("b")] == pytest.approx(first[names.index("b")], rel=1e-4)
    # 4900 elements: every second one stands for the tensor
    assert ratios[0][names.index("w")] == pytest.approx(first[names.index("w")], rel=0.05)
    assert seen.samples("weight_std")[1].shape == (5, 2)


def test_micro_batches_are_no_steps(tmp_path):
    params = {"w": jnp.ones(2)}
    tx = optax.MultiSteps(sg.guard(optax.sgd(0.1), clip="norm:1.0"), every_k_schedule=2)
    state = tx.init(params)
    with sg.Recorder(tmp_path / "run.db", params) as run:
        for size in (1.0, 3.0, 5.0, 7.0, 9.0):
            updates, state = tx.update({"w": jnp.array([size, 0.0])}, state, params)
            params = optax.apply_updates(params, updates)
            sg.record(run, state, params=params)
    seen = steadygrad.open_run(tmp_path / "run.db")
    assert seen.steps.norm.tolist() == [2.0, 6.0]
    assert seen.samples("weight_norm")[0].tolist() == [0, 1, 2]
