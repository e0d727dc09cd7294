"""What is recorded of a training: steps, losses, names, and the norm before the script's clip."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import steadygrad
from steadygrad.errors import NonFiniteError
from steadygrad.launch.contracts import RunContext
from steadygrad.launch.torch_script.by_hand import MOST_WALKS
from steadygrad.launch.torch_script.census import Census
from steadygrad.launch.torch_script.observer import TorchObserver

Observe = Callable[..., Any]


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def data(count: int = 16) -> torch.Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(1))


def oracle_norm(parameters: Any) -> float:
    grads = [p.grad.to_dense().double() for p in parameters if p.grad is not None]
    return float(np.linalg.norm(np.concatenate([grad.numpy().ravel() for grad in grads])))


def test_norm_before_the_scripts_clip_and_loss_are_recorded(observe: Observe) -> None:
    seen = observe()
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    norms, losses, coefs = [], [], []
    for _ in range(6):
        optimizer.zero_grad()
        loss = (10 * net(data())).pow(2).mean()
        loss.backward()
        norms.append(oracle_norm(net.parameters()))
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        coefs.append(oracle_norm(net.parameters()) / norms[-1])
        losses.append(loss.item())
        optimizer.step()
    steps = seen.run().steps
    np.testing.assert_allclose(steps.norm, norms, rtol=1e-12)
    np.testing.assert_allclose(steps.loss, losses, rtol=1e-7)
    np.testing.assert_allclose(steps.coef, coefs, rtol=1e-6)
    assert steps.threshold.tolist() == [1.0] * 6
    assert (steps.coef < 1).sum() == (steps.action == "clip").sum() > 0


def test_accumulated_losses_are_summed(observe: Observe) -> None:
    seen = observe()
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    sums = []
    for _ in range(3):
        parts = [net(data()[k::4]).pow(2).mean() / 4 for k in range(4)]
        for part in parts:
            part.backward()
        sums.append(sum(part.item() for part in parts))
        optimizer.step()
        optimizer.zero_grad()
    run = seen.run()
    np.testing.assert_allclose(run.steps.loss, sums, rtol=1e-6)
    assert [t.name for t in run.tensors] == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_two_optimizers_of_a_gan_have_their_own_names_and_losses(observe: Observe) -> None:
    seen = observe()
    left, right = model(), nn.Linear(1, 1)
    first = torch.optim.SGD(left.parameters(), lr=0.1)
    second = torch.optim.Adam(right.parameters())
    losses: tuple[list[float], list[float]] = ([], [])
    for _ in range(3):
        for place, (optimizer, loss) in enumerate(
            ((first, left(data()).pow(2).mean()), (second, right(left(data()).detach()).mean() + 5))
        ):
            optimizer.zero_grad()
            loss.backward()
            losses[place].append(loss.item())
            optimizer.step()
    run = seen.run()
    for index in (0, 1):
        own = run.steps[run.steps["optimizer"] == index]
        np.testing.assert_allclose(own["loss"], losses[index], rtol=1e-6)
    assert [o["class"] for o in run.info["optimizers"]] == ["SGD", "Adam"]
    names = [t.name for t in run.tensors]
    assert names[0] == "Sequential.0.weight"
    assert names[-1] == "Linear.bias"


def test_a_copied_model_is_named_and_ordered_by_the_forward_pass(observe: Observe) -> None:
    import copy

    class Backwards(nn.Module):
        """Uses its layers in the reverse of the order in which they are registered."""

        def __init__(self) -> None:
            super().__init__()
            self.last, self.first = nn.Linear(8, 1), nn.Linear(4, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.last(self.first(x).relu())
            return out

    seen = observe()
    net = copy.deepcopy(Backwards())
    optimizer = torch.optim.AdamW(net.parameters())
    net(data()).sum().backward()
    optimizer.step()
    places = {t.name: (t.module, t.position) for t in seen.run().tensors}
    assert places["first.weight"][0] == "Linear"
    assert places["first.weight"][1] < places["last.weight"][1]
    assert places["first.bias"][1] == places["first.weight"][1]


def by_hand(norms: list[float], updates: bool, kind: str) -> None:
    torch.manual_seed(0)
    weight = torch.randn(4, 1, requires_grad=True)
    bias = nn.Parameter(torch.zeros(1))
    for _ in range(5):
        for part in (data()[::2], data()[1::2]):
            ((part @ weight + bias - 3).pow(2).mean() / 2).backward()
        norms.append(oracle_norm([weight, bias]))
        for tensor in (weight, bias):
            assert tensor.grad is not None
            if updates:
                tensor.data.add_(tensor.grad, alpha=-0.01)
            if kind == "zero":
                tensor.grad.data.zero_()
            else:
                tensor.grad = None


@pytest.mark.parametrize("kind", ["zero", "none"])
def test_steps_of_a_loop_without_an_optimizer_are_found(observe: Observe, kind: str) -> None:
    seen = observe()
    norms: list[float] = []
    by_hand(norms, True, kind)
    steps = seen.run().steps
    np.testing.assert_allclose(steps.norm, norms, rtol=1e-12)
    assert steps.step.tolist() == [0, 1, 2, 3, 4]
    assert (np.diff(steps.loss) < 0).all()


class Doubled(torch.autograd.Function):
    """Its node holds what is called as a leaf's node calls its leaf."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        ctx.variable = 5
        return value * 2

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        return grads[0] * 2


@pytest.mark.parametrize("steps", [3, 12])
def test_a_loop_by_hand_beside_keras_is_recorded(
    observe: Observe, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    # its first steps are held back: one of Keras' optimizers may come
    monkeypatch.setitem(sys.modules, "keras", ModuleType("keras"))
    seen, weight = observe(), nn.Parameter(torch.ones(4))
    for step in range(steps):
        weight.grad = None
        ((step + 1.0) * weight.sum()).backward()
        with torch.no_grad():
            weight -= 1e-3 * weight.grad
    run = seen.run()
    assert run.steps.step.tolist() == list(range(steps))
    assert run.steps.norm == pytest.approx([2.0 * (step + 1) for step in range(steps)])


@pytest.mark.parametrize(("max_norm", "sparse"), [(0.25, False), (1e6, False), (1e6, True)])
def test_a_loop_by_hand_that_clips_is_recorded_before_the_clip(
    observe: Observe, max_norm: float, sparse: bool
) -> None:
    seen = observe()
    rows = nn.Embedding(4000, 3, dtype=torch.float64, sparse=sparse)
    norms, losses, coefs = [], [], []
    for _ in range(6):
        loss = (Doubled.apply(rows(torch.tensor([3030, 3031]))) - 1).pow(2).sum()
        loss.backward()
        norms.append(oracle_norm([rows.weight]))
        if not sparse:
            torch.nn.utils.clip_grad_norm_([rows.weight], max_norm)
        coefs.append(oracle_norm([rows.weight]) / norms[-1])
        losses.append(loss.item())
        assert rows.weight.grad is not None
        rows.weight.data.add_(rows.weight.grad, alpha=-0.01)  # most rows stay as they were
        rows.weight.grad = None
    run = seen.run()
    np.testing.assert_allclose(run.steps.norm, norms, rtol=1e-12)
    np.testing.assert_allclose(run.steps.coef, coefs, rtol=1e-6)
    assert run.steps.loss.tolist() == losses
    assert run.steps.threshold.tolist() == [math.inf if sparse else max_norm] * 6
    assert run.steps.cosine.tolist() == [1.0] * 6
    assert [t.name for t in run.tensors] == ["weight"]


def test_a_loop_by_hand_awaits_no_optimizer_for_long(
    observe: Observe, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    refresh = Census.refresh
    monkeypatch.setattr(Census, "refresh", lambda self: (looks.append(1), refresh(self))[1])
    seen = observe(clip="norm:0.5")  # a wrapper of optimizers is to be met before it steps
    by_hand([], True, "none")
    assert seen.patches.steps == 4
    assert len(looks) <= 5  # and ten backward passes


def test_backward_without_an_update_is_no_step(observe: Observe) -> None:
    seen = observe()
    by_hand([], False, "none")
    assert seen.patches.steps == 0
    assert seen.patches.backwards == 10


def test_inputs_that_need_gradients_are_no_weights(observe: Observe) -> None:
    seen = observe()
    net = model()
    for _ in range(4):
        images = data().requires_grad_()
        net(images).sum().backward()
        images.data.sub_(0.1)
        net.zero_grad()
    assert seen.patches.steps == 0


def test_a_replaced_clip_call_in_a_loop_without_an_optimizer_is_our_policy(
    observe: Observe,
) -> None:
    seen = observe(clip="norm:0.5")
    weight = nn.Parameter(torch.ones(4))
    for _ in range(3):
        weight.grad = None
        (weight * 3).sum().backward()
        returned = torch.nn.utils.clip_grad_norm_([weight], max_norm=100.0)
        assert returned.item() == pytest.approx(6.0)
        assert weight.grad is not None
        torch.testing.assert_close(weight.grad, torch.full((4,), 0.25))
        weight.data -= weight.grad
    steps = seen.run().steps
    assert steps.norm.tolist() == [6.0] * 3
    assert steps.threshold.tolist() == [0.5] * 3
    assert steps.action.tolist() == ["clip"] * 3


def test_with_a_spec_the_policy_acts_and_the_scripts_calls_do_nothing(observe: Observe) -> None:
    seen = observe(clip="norm:0.5")
    weight = nn.Parameter(torch.ones(4))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    (weight * 3).sum().backward()
    assert torch.nn.utils.clip_grad_norm_(weight, 1e-6).item() == pytest.approx(6.0)
    torch.nn.utils.clip_grad_value_([weight], 1e-6)
    optimizer.step()
    torch.testing.assert_close(weight.data, torch.full((4,), 0.75))
    record = seen.run().steps[0]
    assert (record["norm"], record["threshold"], record["action"]) == (6.0, 0.5, "clip")


def test_clipping_by_value_records_how_far_the_direction_turned(observe: Observe) -> None:
    seen = observe()
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    (weight * torch.tensor([3.0, 4.0])).sum().backward()
    torch.nn.utils.clip_grad_value_([weight], 0.5)
    optimizer.step()
    record = seen.run().steps[0]
    assert (record["norm"], record["threshold"], record["action"]) == (5.0, 0.5, "clip")
    assert record["coef"] == pytest.approx(math.hypot(0.5, 0.5) / 5)
    assert record["cosine"] == pytest.approx(3.5 / (5 * math.hypot(0.5, 0.5)))


def test_a_closure_gives_its_loss_and_its_clip_is_seen(observe: Observe) -> None:
    seen = observe()
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    norms: list[float] = []

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss: torch.Tensor = net(data()).pow(2).mean()
        loss.backward()
        norms.append(oracle_norm(net.parameters()))
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1e-3)
        return loss

    losses = [optimizer.step(closure).item() for _ in range(3)]
    steps = seen.run().steps
    np.testing.assert_allclose(steps.norm, norms, rtol=1e-12)
    np.testing.assert_allclose(steps.loss, losses, rtol=1e-7)
    assert steps.threshold.tolist() == [1e-3] * 3


def test_a_scaled_loss_and_its_gradients_are_recorded_unscaled(observe: Observe) -> None:
    seen = observe()
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    norms, losses = [], []
    for step in range(4):
        optimizer.zero_grad()
        loss = net(data()).pow(2).mean() * (math.inf if step == 0 else 1.0)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        norms.append(oracle_norm(net.parameters()))
        losses.append(loss.item())
        torch.nn.utils.clip_grad_norm_(net.parameters(), 0.1)
        scaler.step(optimizer)
        scaler.update()
    run = seen.run()
    np.testing.assert_allclose(run.steps.norm[1:], norms[1:], rtol=1e-12)
    np.testing.assert_allclose(run.steps.loss[1:], losses[1:], rtol=1e-7)
    assert run.steps.action.tolist()[0] == "skip"
    assert run.steps.loss_scale.tolist() == [1024.0, 512.0, 512.0, 512.0]
    assert run.info["amp"] is True


def test_checkpointing_inside_a_backward_counts_once(observe: Observe) -> None:
    from torch.utils.checkpoint import checkpoint

    seen = observe()
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    loss = checkpoint(net, data().requires_grad_(), use_reentrant=True).sum()
    loss.backward()
    optimizer.step()
    assert seen.patches.backwards == 1
    assert seen.run().steps.loss[0] == pytest.approx(loss.item())


def test_torch_autograd_grad_is_not_taken_for_a_training(observe: Observe) -> None:
    seen = observe()
    weight = torch.ones(3, requires_grad=True)
    for _ in range(3):
        (grad,) = torch.autograd.grad((weight**2).sum(), weight)
        weight = (weight - grad * 0.1).detach().requires_grad_()
    assert seen.patches.steps == 0


def test_a_backbone_that_nobody_updates_is_left_alone(observe: Observe) -> None:
    seen = observe()
    net = model()
    optimizer = torch.optim.SGD(net[2].parameters(), lr=0.1)
    for _ in range(20):
        net.zero_grad()
        net(data()).sum().backward()
        optimizer.step()
    run = seen.run()
    assert set(run.steps["optimizer"]) == {0}
    assert len(run.steps) == 20
    assert not seen.patches._observer._by_hand.active


def test_an_optimizer_made_after_the_first_one_is_no_loop_by_hand(observe: Observe) -> None:
    seen = observe()
    for _ in range(2):
        net = model()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            net(data()).sum().backward()
            optimizer.step()
    run = seen.run()
    assert [o["class"] for o in run.info["optimizers"]] == ["SGD", "SGD"]
    assert len(run.steps) == 6


def test_a_dropped_model_is_freed_at_once(observe: Observe) -> None:
    import gc
    import weakref

    observe()
    gc.collect()
    gc.disable()
    try:
        refs = []
        for _ in range(3):
            net = model()
            optimizer = torch.optim.Adam(net.parameters())
            net(data()).sum().backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            refs += [weakref.ref(net), weakref.ref(net[0].weight), weakref.ref(optimizer)]
        del net, optimizer
        assert [ref() is None for ref in refs[3:]] == [True] * 6  # the first: torch's own imports
    finally:
        gc.enable()


def with_one_nan() -> list[float]:
    """Weights of a loop without an optimizer, one step of which is NaN."""
    weight = nn.Parameter(torch.ones(3))
    for step in range(5):
        loss = (weight * (math.nan if step == 3 else 1.0)).sum()
        weight.grad = None
        loss.backward()
        torch.nn.utils.clip_grad_norm_([weight], 1.0)
        with torch.no_grad():
            weight -= 0.1 * weight.grad
    return weight.data.tolist()


@pytest.mark.parametrize(
    ("wishes", "survives"),
    [
        ({}, False),
        ({"clip": "none"}, False),
        ({"clip": "norm:1.0", "on_nonfinite": "propagate"}, False),
        ({"clip": "norm:1.0"}, True),
        ({"clip": "none", "on_nonfinite": "skip"}, True),
        ({"clip": "none", "on_nonfinite": "zero"}, True),
    ],
)
def test_a_loop_by_hand_keeps_its_nan_unless_asked_otherwise(
    observe: Observe, wishes: dict[str, str], survives: bool
) -> None:
    observe(**wishes)
    weights = with_one_nan()
    assert all(map(math.isfinite, weights)) == survives


def test_a_loop_by_hand_raises_where_that_is_asked_for(observe: Observe) -> None:
    observe(clip="norm:1.0", on_nonfinite="raise")
    with pytest.raises(NonFiniteError, match="step 3"):
        with_one_nan()


def test_inputs_with_a_graph_of_their_own_get_no_origin(observe: Observe) -> None:
    """A gradient penalty: the leaf that no optimizer holds is an input, new at every step."""
    seen = observe(find_nan=True)
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.Adam(critic.parameters())
    for step in range(7):
        x = torch.randn(6, 2).requires_grad_()
        (slope,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
        slope = slope * (0.0 if step == 4 else 1.0)
        loss = ((torch.sqrt((slope**2).sum(1)) - 1) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    events = [event for event in seen.run().events if event.kind == "nan_origin"]
    assert [(e.data["step"], e.data["phase"]) for e in events] == [(4, "backward")]
    assert events[0].data["operation"].startswith("Sqrt")


def test_after_an_overflow_the_dropped_steps_clip_call_is_over(observe: Observe) -> None:
    seen = observe()
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    norms = []
    for step in range(5):
        optimizer.zero_grad()
        loss = net(data()).pow(2).mean()
        scaler.scale(loss).backward()
        if step == 1:
            net[0].bias.grad.fill_(math.inf)
        scaler.unscale_(optimizer)
        norms.append(oracle_norm(net.parameters()))
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1e-3)
        scaler.step(optimizer)
        scaler.update()
    steps = seen.run().steps
    assert steps.action.tolist() == ["clip", "skip", "clip", "clip", "clip"]
    finite = [0, 2, 3, 4]
    np.testing.assert_allclose(steps.norm[finite], np.array(norms)[finite], rtol=1e-12)
    assert steps.threshold[finite].tolist() == [1e-3] * 4
    calls = [event.data for event in seen.run().events if event.kind == "script_clip"]
    assert [call["step"] for call in calls] == [0, 1, 2, 3, 4]
    assert not any(call["repeated"] for call in calls)
    assert all(call["unscaled"] for call in calls)


def test_a_step_that_the_script_drops_by_hand_takes_its_losses_and_clip_call_along(
    observe: Observe,
) -> None:
    seen = observe()
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    losses: list[float] = []
    for step in range(6):
        optimizer.zero_grad(set_to_none=False)  # the tensors stay: nothing but the norm tells
        loss = net(data()).pow(2).mean()
        loss.backward()
        if step == 3:
            net[0].bias.grad.fill_(math.nan)
        norm = torch.nn.utils.clip_grad_norm_(net.parameters(), 1e-3)
        if norm.isfinite():
            optimizer.step()
            losses.append(loss.item())
    run = seen.run()
    assert run.steps.loss.tolist() == losses
    calls = [event.data for event in run.events if event.kind == "script_clip"]
    assert [(c["step"], c["repeated"], c["backward_since_step"], c["renewals"]) for c in calls] == [
        (0, 0, 1, 0), (1, 0, 1, 0), (2, 0, 1, 0), (3, 0, 1, 0), (3, 0, 1, 1), (4, 0, 1, 0)
    ]  # fmt: skip


def test_numpy_that_raises_ends_nothing_and_nothing_is_warned_of(observe: Observe) -> None:
    seen = observe()
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    with np.errstate(all="raise"):
        for step in range(5):
            optimizer.zero_grad()
            scaler.scale(net(data()).pow(2).mean()).backward()
            if step in (1, 2):
                net[0].bias.grad.fill_((math.inf, math.nan)[step - 1])
            torch.nn.utils.clip_grad_norm_(list(net.parameters())[:2], 0.5)  # inf times 0
            scaler.step(optimizer)
            scaler.update()
    steps = seen.run().steps
    assert steps.action.tolist() == ["clip", "skip", "skip", "clip", "clip"]


@pytest.mark.parametrize("wish", [None, "norm:0.5"])
def test_a_layer_wise_optimizer_is_the_optimizers_inside_of_it(
    observe: Observe, wish: str | None
) -> None:
    seen = observe(clip=wish)
    net = model()
    inner = {p: torch.optim.SGD([p], lr=0.01) for p in net.parameters()}

    def step(parameter: torch.Tensor) -> None:
        inner[parameter].step()
        inner[parameter].zero_grad()

    for parameter in net.parameters():
        parameter.register_post_accumulate_grad_hook(step)
    outer = torch.optim.SGD([torch.zeros(1)], lr=0.01)  # as Hugging Face's Trainer has it
    outer.optimizer_dict = inner
    for _ in range(10):
        net(data()).pow(2).mean().backward()
        outer.step()  # warns of nothing, under --clip too
        outer.zero_grad()
    run = seen.run()
    assert len(run.info["optimizers"]) == len(inner)
    assert len(run.steps) == 10 * len(inner)
    assert "SG602" not in {finding.id for finding in steadygrad.diagnose(run)}


def test_threads_that_train_together_share_a_file_and_nothing_else(observe: Observe) -> None:
    seen = observe()
    start = threading.Barrier(4)
    told: dict[int, list[float]] = {}

    def train(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        weight = nn.Parameter(torch.randn(seed + 2, generator=generator))
        optimizer = torch.optim.SGD([weight], lr=0.01)
        losses = []
        start.wait()
        for _ in range(30):
            optimizer.zero_grad()
            loss = ((weight - 10 * seed) ** 2).sum()
            loss.backward()
            torch.nn.utils.clip_grad_norm_([weight], 1.0)
            losses.append(loss.item())
            optimizer.step()
        told[seed] = losses

    threads = [threading.Thread(target=train, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    run = seen.run()
    assert [o["index"] for o in run.info["optimizers"]] == [0, 1, 2, 3]
    assert len(run.steps) == 4 * 30
    found = [run.steps[run.steps["optimizer"] == k]["loss"].tolist() for k in range(4)]
    expected = sorted(told.values(), key=lambda losses: losses[0])
    np.testing.assert_allclose(sorted(found, key=lambda x: x[0]), expected, rtol=1e-6)
    assert not any(call["repeated"] for call in run.info["clip_calls"])


def test_threads_that_begin_together_make_one_observer(
    observe: Observe, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    make = TorchObserver.__init__

    def slowly(self: TorchObserver, session: RunContext) -> None:
        made.append(1)
        time.sleep(0.05)  # the others come meanwhile
        make(self, session)

    monkeypatch.setattr(TorchObserver, "__init__", slowly)
    seen = observe()
    start = threading.Barrier(3)
    threads = [
        threading.Thread(target=lambda: (start.wait(), seen.patches.observer())) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [1]


def test_a_loss_is_heard_while_another_thread_is_inside_its_backward(observe: Observe) -> None:
    seen = observe()
    inside, over = threading.Event(), threading.Event()
    slow, quick = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    of_slow, of_quick = (torch.optim.SGD([weight], lr=0.5) for weight in (slow, quick))

    def wait(gradient: torch.Tensor) -> None:
        inside.set()
        over.wait(30)

    def train() -> None:
        slow.register_hook(wait)
        slow.sum().backward()
        of_slow.step()

    thread = threading.Thread(target=train)
    thread.start()
    inside.wait(30)
    (4 * quick).sum().backward()
    of_quick.step()
    over.set()
    thread.join()
    assert sorted(seen.run().steps["loss"].tolist()) == [2.0, 12.0]


def test_a_clip_call_that_no_policy_would_replace_stays(observe: Observe) -> None:
    seen = observe(clip="norm:0.5")
    weight = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    loose = torch.zeros(2, requires_grad=True)
    (weight * 3).sum().backward()
    loose.grad = torch.tensor([3.0, 4.0])  # updated by something that is no optimizer of torch's
    torch.nn.utils.clip_grad_norm_([loose], 1.0)
    torch.nn.utils.clip_grad_norm_([weight], 1e-6)
    optimizer.step()
    assert loose.grad.tolist() == pytest.approx([0.6, 0.8])
    assert weight.data.norm().item() == pytest.approx(0.5)
    assert any("left as it is" in sentence for sentence in seen.session.troubles)
    seen.session.troubles.clear()


def test_a_training_whose_parameters_all_have_gradients_is_searched_for_once(
    observe: Observe, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    refresh = Census.refresh
    monkeypatch.setattr(Census, "refresh", lambda self: (looks.append(1), refresh(self))[1])
    seen = observe()
    nets = [model(), model()]
    for optimizer in [torch.optim.SGD(net.parameters(), lr=0.1) for net in nets] * 4:
        optimizer.zero_grad()
        sum(net(data()).square().mean() for net in nets).backward()
        optimizer.step()
    assert seen.patches.steps == 8
    assert len(looks) == 1


@pytest.mark.parametrize("last", ["points", "weights"])
def test_inputs_that_need_gradients_cost_no_census_each(
    last: str, observe: Observe, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    refresh = Census.refresh
    monkeypatch.setattr(Census, "refresh", lambda self: (looks.append(1), refresh(self))[1])
    seen = observe()
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(MOST_WALKS + 2):  # as a network that solves an equation does
        points = data().requires_grad_()
        slope = torch.autograd.grad(net(points).sum(), points, create_graph=True)[0]
        optimizer.zero_grad()
        (slope.square().mean() + net(points).square().mean()).backward()
        if last == "weights":  # and the generator of a GAN, whose critic's slope is held
            net(data()).square().mean().backward()
        optimizer.step()
    observer = seen.patches.observer()
    assert observer is not None
    assert not observer.log.readings  # nobody has moved the points: they are looked at no longer
    late = torch.zeros(3, requires_grad=True)  # no parameter of any module, and a late optimizer
    second = torch.optim.SGD([late], lr=0.1)
    for _ in range(3):
        second.zero_grad()
        (late - 1).square().sum().backward()
        second.step()
    counted = len(looks)
    run = seen.run()
    assert counted <= 5
    assert [o["class"] for o in run.info["optimizers"]] == ["SGD", "SGD"]
    assert (run.steps["optimizer"] == 0).sum() == MOST_WALKS + 2
    assert (run.steps["optimizer"] == 1).sum() == 3


@pytest.mark.parametrize("wish", [None, "zero"])
def test_an_optimizer_that_cannot_be_skipped_is_clipped_all_the_same(
    observe: Observe, wish: str | None
) -> None:
    weight, hidden = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    inner = torch.optim.SGD([hidden], lr=1.0)

    class Hides(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            hidden.grad = torch.ones(2)
            inner.step()
            return super().step(closure)

    seen = observe(clip="norm:0.5", on_nonfinite=wish)
    optimizer = Hides([weight], lr=1.0)
    for _ in range(2):
        optimizer.zero_grad()
        (weight * 3).sum().backward()
        torch.nn.utils.clip_grad_norm_([weight], 1e-6)
        optimizer.step()
    assert weight.data.norm().item() == pytest.approx(1.0)
    refused = [what for what in seen.session.troubles if "cannot be skipped whole" in what]
    assert len(refused) == (wish is None)
    seen.session.troubles.clear()
    assert (seen.run().steps.coef < 1).any()
