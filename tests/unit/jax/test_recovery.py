"""Recovery between jitted steps: a struck training heals, another stays as it is, bit for bit."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import steadygrad
import steadygrad.jax as sg
from steadygrad.errors import RecoveryError, UsageError
from steadygrad.recovery import RecoveryEvent, events_of

STEPS = 80
DATA = np.random.default_rng(3).standard_normal((STEPS, 16, 6)).astype(np.float32)
Fault = Callable[[int, Any, Any], tuple[Any, Any]]


def loss_of(params: Any, x: Any) -> Any:
    out = jnp.tanh(x @ params["a"]) @ params["b"]
    return jnp.square(out[:, 0] - x.sum(1)).mean()


@functools.cache
def stepping(clip: str, heeds: bool) -> tuple[Any, Any]:
    """A guard and a jitted step whose trees are donated, compiled once for all tests."""
    more = {"recover": sg.Recovery()} if heeds else {"on_nonfinite": "skip"}
    tx = sg.guard(optax.adam(0.01), clip, **more)

    def step(params: Any, state: Any, x: Any) -> Any:
        loss, grads = jax.value_and_grad(loss_of)(params, x)
        updates, state = tx.update(grads, state, params, value=loss)
        return optax.apply_updates(params, updates), state, loss

    return tx, jax.jit(step, donate_argnums=(0, 1))


@functools.cache
def descent(rate: float, tells: bool) -> tuple[Any, Any]:
    """Plain descent that heeds a recovery, as `stepping`."""
    tx = sg.guard(optax.sgd(rate), "none", recover=sg.Recovery())

    def step(params: Any, state: Any, grads: Any, loss: Any) -> Any:
        told = {"value": loss} if tells else {}
        updates, state = tx.update(grads, state, params, **told)
        return optax.apply_updates(params, updates), state

    return tx, jax.jit(step)


class Training:
    """A small network."""

    def __init__(self, recover: str | None, clip: str = "norm:5.0", run: Any = None) -> None:
        self.recovery = None if recover is None else sg.Recovery(recover, run=run)
        tx, self.step = stepping(clip, recover is not None)
        rng = np.random.default_rng(0)
        shapes = {"a": (6, 8), "b": (8, 1)}
        self.params = {
            k: jnp.asarray(rng.standard_normal(s), jnp.float32) for k, s in shapes.items()
        }
        self.state = tx.init(self.params)

    def train(self, fault: Fault | None = None, recorder: Any = None) -> None:
        for step in range(STEPS):
            x = jnp.asarray(DATA[step])
            if fault is not None:
                self.params, x = fault(step, self.params, x)
            self.params, self.state, loss = self.step(self.params, self.state, x)
            if recorder is not None:
                sg.record(recorder, self.state, loss)
            if self.recovery is not None:
                self.params, self.state = self.recovery.after_step(self.params, self.state, loss)

    @property
    def acts(self) -> list[RecoveryEvent]:
        return [] if self.recovery is None else self.recovery.acts

    def finite(self) -> bool:
        return all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(self.params))


@pytest.mark.parametrize("clip", ["norm:5.0", "none"])
def test_nothing_changes_where_nothing_strikes(clip: str) -> None:
    plain, guarded = Training(None, clip), Training("auto+snapshots:stride=7", clip)
    plain.train()
    guarded.train()
    assert guarded.acts == []
    inner = (guarded.state.inner, guarded.params)
    for left, right in zip(
        jax.tree.leaves((plain.state.inner, plain.params)), jax.tree.leaves(inner), strict=True
    ):
        np.testing.assert_array_equal(left, right)


def at(step: int, change: Fault) -> Fault:
    return lambda now, params, x: change(now, params, x) if now == step else (params, x)


NAN_DATA = at(50, lambda _, params, x: (params, x.at[0, 0].set(jnp.nan)))
BROKEN_WEIGHT = at(50, lambda _, params, x: ({**params, "a": params["a"] * jnp.nan}, x))
LARGE_DATA = at(50, lambda _, params, x: (params, x * 1e4))


@pytest.mark.parametrize(
    ("fault", "act", "trigger"),
    [
        (NAN_DATA, "skip", "loss not finite"),
        (BROKEN_WEIGHT, "rollback", "weights not finite"),
        (LARGE_DATA, "skip", "norm spike"),
    ],
)
def test_a_struck_training_heals(fault: Fault, act: str, trigger: str, tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    with sg.Recorder(path) as recorder:
        struck = Training("auto+snapshots:stride=7", run=recorder)
        struck.train(fault, recorder)
    told = struck.acts
    assert struck.finite()
    assert [(a.step, a.act, a.trigger) for a in told if a.trigger] == [(50, act, trigger)]
    assert struck.step._cache_size() == 1  # limits are set without compiling anew
    run = steadygrad.open_run(path)
    assert events_of(run.events) == told
    assert run.steps.action[50] == "skip"
    assert "SG206" in {f.id for f in steadygrad.diagnose(run)}
    lost = Training(None)
    lost.train(fault)
    assert lost.finite() == (fault is not BROKEN_WEIGHT)


@pytest.mark.parametrize(
    ("computed", "nature"),
    [
        (lambda: {"g": jnp.ones(2)}, "transient"),
        (lambda: jnp.array([jnp.nan]), "persistent"),
        (lambda: 1 // 0, "unknown"),
        (None, ""),
    ],
)
def test_a_dropped_step_computed_again_tells_a_transient_fault(computed: Any, nature: str) -> None:
    recovery = sg.Recovery()
    tx, move = descent(0.01, False)
    params, calls = jnp.ones(3), []
    state = tx.init(params)

    def again() -> Any:
        calls.append(step)
        return computed()

    for step in range(4):
        params, state = move(params, state, jnp.full(3, jnp.nan if step == 2 else 0.1), 1.0)
        params, state = recovery.after_step(params, state, 1.0, computed and again)
    assert [(a.act, a.nature) for a in recovery.acts] == [("skip", nature)]
    assert calls == [2] * (computed is not None)


def test_a_spike_of_the_loss_alone_is_dropped_too() -> None:
    recovery = sg.Recovery("auto+snapshots:stride=5")
    tx, move = descent(0.01, True)
    params = jnp.ones(3)
    state = tx.init(params)
    for step in range(60):
        loss = 90.0 if step == 40 else 1.0 + 0.01 * (step % 3)
        before = params
        params, state = move(params, state, jnp.full(3, 0.1), loss)
        assert bool((params == before).all()) == (step == 40)
        params, state = recovery.after_step(params, state, loss)
    assert [(a.step, a.act, a.trigger) for a in recovery.acts] == [(40, "skip", "loss spike")]


def test_a_loss_that_is_told_now_and_then_is_no_spike() -> None:
    recovery = sg.Recovery("rollback:4+snapshots:stride=5")
    tx, move = descent(0.01, False)
    params = jnp.ones(3)
    state = tx.init(params)
    for step in range(60):
        params, state = move(params, state, jnp.full(3, 0.1), 2.3)
        params, state = recovery.after_step(params, state, 2.3 if step == 50 else None)
    assert recovery.acts == []


def test_a_loss_that_the_step_is_not_told_is_let_pass_and_then_gone_back_from() -> None:
    recovery = sg.Recovery("skip:2+rollback:4+snapshots:stride=5")
    tx, move = descent(0.01, False)
    params, kept = jnp.ones(3), {}
    state = tx.init(params)
    for step in range(60):
        kept[step] = params
        loss = 90.0 if step >= 40 and not recovery.acts else 1.0 + 0.01 * (step % 3)
        params, state = move(params, state, jnp.full(3, 0.1), loss)
        params, state = recovery.after_step(params, state, loss)
        if step == 42:
            (act,) = recovery.acts
            assert (act.act, act.to_step) == ("rollback", 36)
            np.testing.assert_array_equal(params, kept[36])
    assert int(state.clip.step) == 60


def test_batches_are_left_out_after_a_rollback() -> None:
    struck = Training("rollback:2,leave_out=10+snapshots:stride=7")
    struck.train(BROKEN_WEIGHT)
    left_out = [a.step for a in struck.acts if a.act == "leave out"]
    assert left_out == list(range(51, 61))
    assert int(struck.state.inner[0].count) == STEPS - 1 - 10 - (50 - struck.acts[0].to_step)


def test_weights_with_nan_are_never_kept_as_good_and_the_budget_ends() -> None:
    broken = Training("rollback:2+snapshots:stride=1")
    broken.params["a"] = broken.params["a"] * jnp.nan
    with pytest.raises(RecoveryError, match="no good snapshot"):
        broken.train()
    again = Training("rollback:1+snapshots:stride=5")
    with pytest.raises(RecoveryError, match=r"last good step is \d+"):
        again.train(
            lambda step, p, x: ({**p, "a": p["a"] * jnp.nan}, x) if step in (50, 60) else (p, x)
        )
    params, state = again.recovery.last_good
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves((params, state.inner)))


def test_the_rate_is_lowered_after_a_second_rollback() -> None:
    recovery = sg.Recovery("rollback:4+lower_lr:0.5,steps=20+snapshots:stride=5")
    tx, move = descent(0.01, False)
    params, moved = jnp.ones(3), []
    state = tx.init(params)
    for step in range(100):
        if step in (40, 60):
            params = params * jnp.nan
        before = params
        params, state = move(params, state, jnp.full(3, 0.1) + 0 * params, 1.0)
        moved.append(round(1000 * float((before - params)[0]), 2))
        params, state = recovery.after_step(params, state, 1.0)
    assert moved[59] == 1.0
    assert moved[61:81] == [0.5] * 20
    assert moved[81:] == [1.0] * 19


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match="after_step"):
        sg.guard(optax.sgd(0.1), recover="auto")
    with pytest.raises(UsageError, match="folder"):
        sg.Recovery("auto+snapshots:somewhere")
    recovery = sg.Recovery()
    with pytest.raises(UsageError, match="on_nonfinite"):
        sg.guard(optax.sgd(0.1), recover=recovery, on_nonfinite="zero")
    with pytest.raises(UsageError, match="recover=recovery"):
        recovery.after_step(jnp.ones(2), sg.guard(optax.sgd(0.1)).init(jnp.ones(2)))
