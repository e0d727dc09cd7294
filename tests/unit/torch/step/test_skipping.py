"""What is done about NaN and inf, in every optimizer of torch.optim."""

from __future__ import annotations

import collections
import math
import random

import numpy as np
import pytest
import torch

import steadygrad.torch as sg
from steadygrad.errors import AttachError, NonFiniteError

FLAGS = {
    "": {},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "single": {"foreach": False},
    "weight_decay": {"weight_decay": 0.1},
    "momentum": {"momentum": 0.9},
    "nesterov": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    "momentum-fused": {"momentum": 0.9, "fused": True},
    "amsgrad": {"amsgrad": True},
    "maximize": {"maximize": True},
    "tensor-lr": {"lr": torch.tensor(0.01)},
    "centered": {"centered": True, "momentum": 0.5},
}
EVERY = [
    *[("Adam", flag) for flag in ("", "foreach", "fused", "single", "weight_decay", "amsgrad")],
    *[("Adam", flag) for flag in ("maximize", "tensor-lr")],
    *[("AdamW", flag) for flag in ("", "fused", "amsgrad")],
    *[("SGD", flag) for flag in ("", "fused", "nesterov", "momentum-fused", "weight_decay")],
    *[("Adagrad", flag) for flag in ("", "fused", "weight_decay")],
    *[("RMSprop", flag) for flag in ("", "foreach", "centered")],
    *[(name, "") for name in ("Adadelta", "Adafactor", "Adamax", "ASGD", "NAdam", "RAdam")],
    *[(name, "") for name in ("Rprop", "Muon", "SparseAdam", "LBFGS")],
]


def test_no_optimizer_of_torch_is_left_out():
    stock = {
        name
        for name, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, torch.optim.Optimizer)
    }
    assert stock - {"Optimizer"} == {name for name, _ in EVERY}


def make_training(training, name, flag):
    def make(model):
        if name == "Muon":  # takes matrices only
            params = [p for p in model.parameters() if p.ndim == 2]
        elif name == "SparseAdam":
            params = model[0].parameters()
        else:
            params = model.parameters()
        return getattr(torch.optim, name)(params, **FLAGS[flag])

    t = training(make)
    if name == "SparseAdam":
        t.model[0].weight.grad = None
    return t


def step(t, name, factor=1.0):
    if name == "LBFGS":
        t.optimizer.step(t.closure([factor]))
        return
    t.backward(factor)
    if name == "SparseAdam":
        for p in t.model[0].parameters():
            p.grad = p.grad.to_sparse()
    t.optimizer.step()


@pytest.mark.parametrize(("name", "flag"), EVERY)
@pytest.mark.parametrize("warm", [False, True], ids=["first-step", "warm"])
def test_a_skipped_step_leaves_every_bit(training, name, flag, warm):
    t, twin = make_training(training, name, flag), make_training(training, name, flag)
    steady = sg.attach(t.optimizer, clip="norm:1e9")
    for _ in range(2 if warm else 0):
        step(t, name)
        step(twin, name)
    before = t.everything()
    step(t, name, math.nan)
    assert t.same_as(before)
    assert steady.last.action == "skip"
    assert steady.last.nonfinite > 0
    for _ in range(2):  # and it goes on as if the step had never been
        step(t, name)
        step(twin, name)
    assert t.same_as(twin)
    assert not t.same_as(before)


def test_gradients_are_still_there_after_a_skipped_step(sgd):
    sg.attach(sgd.optimizer)
    sgd.step(math.inf)
    assert all(g is not None for g in sgd.grads())


def test_raise_names_the_tensors_the_counts_and_the_step(sgd):
    sg.attach(sgd.optimizer, model=sgd.model, on_nonfinite="raise")
    sgd.step()
    before = sgd.everything()
    sgd.backward()
    sgd.model[2].weight.grad[0, :3] = math.nan
    grads = [g.clone() for g in sgd.grads()]
    with pytest.raises(
        NonFiniteError, match=r"step 1: .* not finite: 2.weight \(3 of 8 elements\)"
    ):
        sgd.optimizer.step()
    assert sgd.same_as(before)
    assert torch.equal(grads[0], sgd.grads()[0])
    sgd.step()  # the next one is an ordinary step
    assert not sgd.same_as(before)


def test_zero_repairs_the_elements_and_clips_the_rest(sgd):
    steady = sg.attach(sgd.optimizer, clip="norm:0.01", on_nonfinite="zero")
    sgd.backward()
    sgd.model[0].weight.grad[0, 0] = math.inf
    sgd.model[0].weight.grad[1, 1] = math.nan
    sgd.optimizer.step()
    assert sgd.norm() == pytest.approx(0.01, rel=1e-6)
    assert sgd.model[0].weight.grad[0, 0] == 0
    assert sgd.model[0].weight.grad[1, 1] == 0
    assert (steady.last.nonfinite, steady.last.action) == (2, "clip")
    assert math.isnan(steady.last.norm)


def test_zero_repairs_sparse_and_complex_gradients():
    table = torch.nn.Parameter(torch.zeros(4))
    z = torch.nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    optimizer = torch.optim.SGD([table, z], lr=1.0)
    sg.attach(optimizer, clip="norm:100", on_nonfinite="zero")
    values = torch.tensor([math.nan, 2.0])
    table.grad = torch.sparse_coo_tensor([[0, 3]], values, (4,), check_invariants=True)
    z.grad = torch.tensor([complex(1, 2), complex(math.inf, 1)])
    optimizer.step()
    assert table.tolist() == [0, 0, 0, -2.0]
    assert z.tolist() == [complex(-1, -2), complex(0, -1)]


def test_propagate_lets_everything_through(sgd):
    steady = sg.attach(sgd.optimizer, clip="norm:1.0", on_nonfinite="propagate")
    sgd.step(math.nan)
    assert all(torch.isnan(p).all() for p in sgd.model.parameters())
    assert (steady.last.action, steady.last.coef) == ("none", 1.0)


def test_the_default_is_skip_and_for_none_propagate(sgd, training):
    sg.attach(sgd.optimizer, clip="none")
    sgd.step(math.nan)
    assert torch.isnan(next(sgd.model.parameters())).all()
    guarded = training(lambda m: torch.optim.SGD(m.parameters(), lr=0.1))
    before = guarded.everything()
    sg.attach(guarded.optimizer, clip="none", on_nonfinite="skip")
    guarded.step(math.nan)
    assert guarded.same_as(before)


class NeedsGroups(torch.optim.Optimizer):
    """Reads its first group's first parameter, as some optimizers do: no shadow serves it."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        self.param_groups[0]["params"][0].device  # noqa: B018
        for group in self.param_groups:
            group["seen"] = group.get("seen", 0)
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(p.grad, alpha=group["lr"])


class Counts(NeedsGroups):
    """Counts its steps whatever the gradients: what it writes has to be put back."""

    def step(self, closure=None):
        super().step()
        self.param_groups[0]["seen"] += 1


class DecaysAlways(torch.optim.Optimizer):
    """Decays without asking for gradients; groups are all it reads: a shadow serves it."""

    def __init__(self, params):
        super().__init__(params, {"lr": 0.1})
        self.count = 0

    @torch.no_grad()
    def step(self, closure=None):
        self.count += 1
        for group in self.param_groups:
            for p in group["params"]:
                p.mul_(0.9).sub_(p.grad, alpha=group["lr"])


@pytest.mark.parametrize("cls", [NeedsGroups, Counts, DecaysAlways])
def test_a_foreign_optimizer_is_skipped_in_the_way_that_works_for_it(training, cls):
    t = training(lambda m: cls(m.parameters()))
    steady = sg.attach(t.optimizer, clip="norm:0.1")
    if cls is not DecaysAlways:
        t.step()
    before = t.everything()
    count = getattr(t.optimizer, "count", None)
    for _ in range(2):
        t.step(math.nan)
        assert t.same_as(before)
        assert all(g is not None for g in t.grads())
    assert getattr(t.optimizer, "count", None) == count
    t.step()
    assert steady.last.action == "clip"
    assert not t.same_as(before)


class Factors:
    """What is kept of a block, as Shampoo keeps it: large, and written by every step."""

    def __init__(self):
        self.matrices = (torch.ones(80, 80),)


class KeepsObjectsInItsState(torch.optim.SGD):
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            blocks = self.state[p].setdefault("blocks", {"0": {"factors": Factors()}})
            blocks["0"]["factors"].matrices[0].mul_(0.9)
        with torch.no_grad():  # without gradients, too: it is skipped by being undone
            p.add_(blocks["0"]["factors"].matrices[0][0, 0])
        return super().step(closure)


def test_objects_in_the_state_are_put_back_whole(training):
    t = training(lambda model: KeepsObjectsInItsState(model.parameters(), lr=0.1))
    t.step()
    sg.attach(t.optimizer)
    first = t.optimizer.state[next(t.model.parameters())]["blocks"]["0"]["factors"].matrices[0]
    before, factors = [p.tolist() for p in t.model.parameters()], first.clone()
    t.step(math.nan)
    assert [p.tolist() for p in t.model.parameters()] == before
    assert torch.equal(first, factors)


class Group(collections.UserDict):
    """A group that is no dict, and that nobody else knows."""


@pytest.mark.parametrize("kind", [collections.ChainMap, Group])
def test_weights_are_put_back_whatever_their_group_is(training, kind):
    def make(model):
        optimizer = KeepsObjectsInItsState(model.parameters(), lr=0.1)
        optimizer.param_groups = [
            kind(*([{}] if kind is collections.ChainMap else []), group)
            for group in optimizer.param_groups
        ]
        optimizer.model = model  # no trial
        return optimizer

    t = training(make)
    sg.attach(t.optimizer)
    for _ in range(2):
        t.step()
        before = [p.tolist() for p in t.model.parameters()]
        t.step(math.nan)
        assert [p.tolist() for p in t.model.parameters()] == before


def test_an_optimizer_that_averages_over_ranks_is_not_skipped_on_one(training):
    class PostLocalSGDOptimizer(torch.optim.SGD):
        pass

    t = training(lambda model: PostLocalSGDOptimizer(model.parameters(), lr=0.1))
    with pytest.raises(AttachError, match="averages the weights of all ranks"):
        sg.attach(t.optimizer)
    sg.attach(t.optimizer, on_nonfinite="raise")


class Draws(torch.optim.SGD):
    """Adds noise from every source that there is."""

    def step(self, closure=None):
        loss = None if closure is None else torch.enable_grad()(closure)()
        super().step()
        with torch.no_grad():
            for p in self.param_groups[0]["params"]:
                p.mul_(1 + 0.01 * (random.random() + np.random.random() + torch.rand(()).item()))
        return loss


class DividesByTheNorm(NeedsGroups):
    """Cannot step on zeros, nor on nothing."""

    def step(self, closure=None):
        loss = None
        self.begun = True  # so that a step writes before its closure
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        grads = [p.grad for p in self.param_groups[0]["params"] if p.grad is not None]
        scale = 1.0 / math.sqrt(sum(float(g.square().sum()) for g in grads))
        with torch.no_grad():
            for p, g in zip(self.param_groups[0]["params"], grads, strict=True):
                p.sub_(g * scale)
        self.begun = False
        return loss


@pytest.mark.parametrize("with_closure", [False, True])
@pytest.mark.parametrize("cls", [Draws, DividesByTheNorm])
def test_a_skipped_step_ends_well_and_leaves_every_source_of_numbers(training, cls, with_closure):
    t = training(lambda model: cls(model.parameters(), lr=0.1))
    sg.attach(t.optimizer)
    for factor in (math.nan, 1.0, math.nan):
        before = t.everything()
        states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
        if with_closure:
            t.optimizer.step(t.closure([factor]))
        else:
            t.step(factor)
        now = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
        if math.isnan(factor):
            assert t.same_as(before)
            assert now[:2] == states[:2]
            assert torch.equal(now[2], states[2])
        else:
            assert not t.same_as(before)


def hides_its_optimizer(model):
    """Steps an optimizer that only a function knows."""
    inner = torch.optim.SGD(model.parameters(), lr=0.1)

    class Hides(torch.optim.SGD):
        def step(self, closure=None):
            inner.step()

    return Hides(model.parameters(), lr=0.1)


def test_an_optimizer_that_cannot_be_skipped_is_refused_when_attaching(training):
    t = training(hides_its_optimizer)
    t.backward()
    before = t.everything()
    with pytest.raises(AttachError, match=r"Hides cannot be skipped whole.*on_nonfinite='raise'"):
        sg.attach(t.optimizer)
    assert t.same_as(before)
    sg.attach(t.optimizer, on_nonfinite="raise")
    t.optimizer.step()
    assert not t.same_as(before)
