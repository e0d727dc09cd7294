"""What attach writes into a run file: names, places, figures, and its own cost."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch
from torch.nn.modules.module import _global_forward_pre_hooks

import steadygrad.torch as sg
from steadygrad import open_run
from steadygrad.errors import RunFileError
from steadygrad.runlog import RunWriter, TensorInfo
from steadygrad.torch.step.naming import ModelNames


def test_steps_and_tensors_of_a_run(sgd, tmp_path):
    path = tmp_path / "run.db"
    records, norms = [], []
    with sg.attach(sgd.optimizer, clip="norm:0.1", model=sgd.model, run=path) as steady:
        for factor in (1.0, math.nan, 0.001):
            steady.observe_loss(factor)
            sgd.step(factor)
            records.append(steady.last)
            norms.append(steady.stats.norms)
    run = open_run(path)
    for name in ("step", "loss", "norm", "threshold", "coef", "lr", "loss_scale", "nonfinite"):
        expected = np.array([getattr(record, name) for record in records])
        assert np.array_equal(run.steps[name], expected, equal_nan=True), name
    assert run.steps.action.tolist() == ["clip", "skip", "none"]
    assert [t.name for t in run.tensors] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert [t.module for t in run.tensors] == ["Linear"] * 4
    assert [t.position for t in run.tensors] == [0, 0, 1, 1]
    assert run.tensors[0].shape == (8, 4)
    assert np.allclose(run.tensor_norms, norms, rtol=2e-3, equal_nan=True)
    assert run.info["policy"] == "norm:0.1"
    assert run.info["on_nonfinite"] == "skip"
    assert run.info["observed_by"] == "attach"
    assert run.info["framework"] == "torch"
    assert run.info["versions"]["torch"] == torch.__version__
    assert run.info["optimizers"] == [{"class": "SGD", "index": 0, "weight_decay": 0.0}]
    assert 0 < run.info["overhead_seconds"] < 60


def test_two_optimizers_write_one_run(training, tmp_path):
    path = tmp_path / "run.db"
    with RunWriter(path) as writer:
        made = [training(lambda m: torch.optim.SGD(m.parameters(), lr=0.1)) for _ in range(2)]
        handles = [
            sg.attach(t.optimizer, model=t.model, run=writer, optimizer_index=i)
            for i, t in enumerate(made)
        ]
        made[0].step()
        made[1].step()
        made[0].step()
        for handle in handles:
            handle.detach()
        assert writer.recording  # who opened it closes it
    run = open_run(path)
    assert run.steps.optimizer.tolist() == [0, 1, 0]
    assert run.steps.step.tolist() == [0, 0, 1]
    assert [t.optimizer for t in run.tensors] == [0] * 4 + [1] * 4
    assert np.isnan(run.tensor_norms[1, :4]).all()
    assert np.isfinite(run.tensor_norms[1, 4:]).all()


def test_parameters_added_later_and_missing_gradients(training, tmp_path):
    path = tmp_path / "run.db"
    t = training(lambda m: torch.optim.SGD(m[0].parameters(), lr=0.1))
    with sg.attach(t.optimizer, model=t.model, run=path):
        t.step()
        t.backward()
        t.model[0].weight.grad = None
        t.optimizer.step()
        t.optimizer.add_param_group({"params": t.model[2].parameters()})
        t.step()
    run = open_run(path)
    held = {
        row: {run.tensors[i].name for i in np.flatnonzero(np.isfinite(run.tensor_norms[row]))}
        for row in range(3)
    }
    assert held[0] == {"0.weight", "0.bias"}
    assert held[1] == {"0.bias"}
    assert held[2] == {"0.weight", "0.bias", "2.weight", "2.bias"}


def test_a_run_is_never_overwritten_and_nothing_stays_attached(sgd, tmp_path):
    path = tmp_path / "run.db"
    path.write_text("mine")
    with pytest.raises(RunFileError, match="exists already"):
        sg.attach(sgd.optimizer, run=path)
    assert path.read_text() == "mine"
    sg.attach(sgd.optimizer)


def test_names_may_be_a_mapping_or_a_function(sgd):
    weight = sgd.model[0].weight
    steady = sg.attach(sgd.optimizer, names={id(weight): "mine"})
    sgd.step()
    assert steady.stats.names == ("mine", "group0.1", "group0.2", "group0.3")
    steady.detach()
    info = TensorInfo("told", (8, 4), "float32", "Special", 5)
    steady = sg.attach(sgd.optimizer, names=lambda p: info if p is weight else None)
    sgd.step()
    assert steady.stats.names[0] == "told"
    assert (
        steady._engine.journal.announced[0].module,
        steady._engine.journal.announced[0].position,
    ) == (
        "Special",
        5,
    )


def test_the_forward_order_is_that_of_the_first_pass_and_hooks_are_gone_after_it():
    class Backwards(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.last = torch.nn.Linear(2, 2)
            self.first = torch.nn.Linear(2, 2)
            self.unused = torch.nn.Linear(2, 2)

        def forward(self, x):
            return self.last(self.first(x))

    model = Backwards()
    names = ModelNames(model)
    assert len(_global_forward_pre_hooks) == 1
    twin = pickle.loads(pickle.dumps(torch.nn.Sequential(*model.children())))
    twin(torch.ones(1, 2))  # another model does not count
    model(torch.ones(1, 2))
    assert names.finish()
    assert not names.finish()
    assert not _global_forward_pre_hooks
    order = {name: names(p).position for name, p in model.named_parameters()}
    assert order["first.weight"] == 0
    assert order["last.bias"] == 1
    assert order["unused.weight"] == -1


def test_the_hook_goes_with_what_wanted_it(sgd):
    steady = sg.attach(sgd.optimizer, model=sgd.model)
    assert _global_forward_pre_hooks
    steady.detach()
    assert not _global_forward_pre_hooks
    names = ModelNames(sgd.model)
    assert _global_forward_pre_hooks
    del names
    assert not _global_forward_pre_hooks


def test_names_are_those_of_the_model_inside_wrappers():
    from torch.nn.parallel import DataParallel

    inner = torch.nn.Sequential(torch.nn.Linear(2, 1))
    optimizer = torch.optim.SGD(inner.parameters(), lr=0.1)
    with sg.attach(optimizer, model=DataParallel(inner)) as steady:
        inner(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        assert steady.stats.names == ("0.weight", "0.bias")


def test_a_dropped_optimizer_closes_its_run(sgd, tmp_path):
    path = tmp_path / "run.db"
    sg.attach(sgd.optimizer, run=path)
    sgd.step()
    sgd.optimizer = None
    assert open_run(path).info["ended"] > 0


def test_overhead_is_counted(sgd):
    steady = sg.attach(sgd.optimizer)
    sgd.step()
    first = steady.overhead_seconds
    sgd.step()
    assert 0 < first < steady.overhead_seconds
