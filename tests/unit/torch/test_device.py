"""The device path, run on the CPU: figures stay tensors, and the host reads none of them."""

from __future__ import annotations

import math
from unittest import mock

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import steadygrad.torch as sg
from steadygrad import kernels, open_run
from steadygrad.errors import NonFiniteError
from steadygrad.kernels import Read
from steadygrad.torch.internals import eager

READING = {"aten::_local_scalar_dense", "aten::item", "aten::equal", "aten::nonzero"}


class Reads(TorchDispatchMode):
    """Counts the operations by which a host waits for a device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __enter__(self):
        tolist = torch.Tensor.tolist

        def counted(tensor):
            self.count += tensor.numel() > 1  # smaller ones are dispatched as an item
            return tolist(tensor)

        self.patches = (
            mock.patch.object(torch.Tensor, "tolist", counted),
            mock.patch.object(eager, "are_on", return_value=False),
        )  # a mode sees nothing of ours otherwise
        for patch in self.patches:
            patch.start()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        for patch in self.patches:
            patch.stop()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func._schema.name in READING
        return func(*args, **(kwargs or {}))


@pytest.fixture
def on_device(monkeypatch):
    """Figures and coefficients as on a device: torch tensors from the kernel, and back into it."""
    read = kernels.read

    def read_there(tensors, norm_type=2.0):
        figures = read(tensors, norm_type)
        columns = (figures.norms, figures.max_abs, figures.nonfinite, figures.zeros)
        return Read(*(torch.from_numpy(column) for column in columns))

    def scale_there(tensors, coefs):
        each = coefs if coefs.ndim else coefs.expand(len(tensors))
        for tensor, coef in zip(tensors, each.unbind(), strict=True):
            tensor.copy_(tensor.double() * coef)

    monkeypatch.setattr(kernels, "read", read_there)
    monkeypatch.setattr(kernels, "scale_", scale_there)


def reads_of_a_step(t):
    """How many figures the host read in one step, the optimizer's own reads not counted."""
    t.backward()
    plain = Reads()
    hook = next(iter(t.optimizer._optimizer_step_pre_hooks.values()))
    with plain:
        hook(t.optimizer, (t.optimizer,), {})
    t.optimizer._steadygrad._engine.abandon()
    return plain.count


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


CLIPS = ("norm:0.05", "norm:0.05,p=inf", "tensor-norm:0.05", "value:0.01", "none", "auto", "zclip")
CLIPS += ("autoclip:50", "adagc", "agc:0.01", "skip+norm:0.05", "{0.*: norm:0.05, *: value:0.01}")


@pytest.mark.parametrize("clip", CLIPS)
def test_the_device_path_does_what_the_host_path_does(training, clip, request):
    host = training(sgd)
    first = sg.attach(host.optimizer, clip=clip, model=host.model)
    expected = []
    for _ in range(4):
        host.step()
        expected.append(first.last)
    request.getfixturevalue("on_device")
    there = training(sgd)
    second = sg.attach(there.optimizer, clip=clip, model=there.model)
    for record in expected:
        there.step()
        assert isinstance(second.stats.norms, torch.Tensor)
        last = second.last
        assert (last.step, last.action, last.nonfinite) == (record.step, record.action, 0)
        for field in ("norm", "threshold", "coef", "cosine"):
            assert getattr(last, field) == pytest.approx(getattr(record, field), rel=1e-9), field
    for a, b in zip(host.model.parameters(), there.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.usefixtures("on_device")
@pytest.mark.parametrize("clip", CLIPS)
def test_propagate_reads_nothing(training, clip, tmp_path):
    t = training(sgd)
    with sg.attach(t.optimizer, clip=clip, model=t.model, on_nonfinite="propagate") as steady:
        steady.observe_loss(torch.tensor(2.0))
        wanted = 1 if clip.startswith("skip") else 0  # the policy itself wants to skip
        assert reads_of_a_step(t) == wanted  # first step
        assert reads_of_a_step(t) == wanted
        assert steady.last.step == 1


@pytest.mark.usefixtures("on_device")
@pytest.mark.parametrize("on_nonfinite", ["skip", "raise", "zero"])
def test_the_other_ways_read_one_bool(training, on_nonfinite):
    t = training(sgd)
    sg.attach(t.optimizer, clip="skip+norm:0.05", on_nonfinite=on_nonfinite)
    assert reads_of_a_step(t) == 1
    assert reads_of_a_step(t) == 1


@pytest.mark.usefixtures("on_device")
def test_a_broken_step_on_a_device(training):
    t = training(sgd)
    steady = sg.attach(t.optimizer, clip="autoclip:50")
    t.step()
    before, memory = t.everything(), steady.state_dict()["state"]
    t.step(math.nan)
    assert t.same_as(before)
    assert (steady.last.action, math.isnan(steady.last.norm)) == ("skip", True)
    assert steady.last.nonfinite > 0
    after = steady.state_dict()["state"]
    assert all(torch.equal(after[key], memory[key]) for key in memory)
    steady.detach()
    sg.attach(t.optimizer, on_nonfinite="raise")
    with pytest.raises(NonFiniteError, match=r"step 0: gradients are not finite: group0.0"):
        t.step(math.nan)
    t.optimizer._steadygrad.detach()
    steady = sg.attach(t.optimizer, clip="norm:0.01", on_nonfinite="zero")
    t.backward()
    t.model[0].weight.grad[0, 0] = math.inf
    t.optimizer.step()
    assert t.norm() == pytest.approx(0.01, rel=1e-6)


@pytest.mark.usefixtures("on_device")
def test_steps_under_way_are_recorded_in_order_with_their_figures(training, tmp_path):
    t = training(sgd)
    path = tmp_path / "run.db"
    norms = []
    with sg.attach(t.optimizer, clip="norm:0.05", model=t.model, run=path) as steady:
        for step in range(6):
            steady.observe_loss(torch.tensor(float(step)))
            t.backward(math.nan if step == 3 else 1.0)
            norms.append(t.norm())
            t.optimizer.step()
    run = open_run(path)
    assert run.steps.step.tolist() == list(range(6))
    assert run.steps.loss.tolist() == list(range(6))
    assert run.steps.action.tolist() == ["clip"] * 3 + ["skip"] + ["clip"] * 2
    assert np.allclose(run.steps.norm, norms, rtol=1e-12, equal_nan=True)
    assert run.tensor_norms.shape == (6, 4)


@pytest.mark.usefixtures("on_device")
def test_the_drop_ins_read_nothing_but_what_error_if_nonfinite_asks(training):
    t = training(sgd)
    t.backward()
    params = list(t.model.parameters())
    with Reads() as reads:
        norm = sg.clip_grad_norm_(params, 0.01)
        sg.get_total_norm([p.grad for p in params])
        sg.measure(params)
    assert reads.count == 0
    assert norm.item() > 0.01
    assert t.norm() == pytest.approx(0.01, rel=1e-6)
    with Reads() as reads:
        sg.clip_grad_norm_(params, 1.0, error_if_nonfinite=True)
    assert reads.count == 1


def test_the_counter_counts():
    with Reads() as reads:
        bool(torch.tensor(1.0) > 0)
        float(torch.tensor(1.0))
        torch.tensor([1.0, 2.0]).tolist()
    assert reads.count == 3
