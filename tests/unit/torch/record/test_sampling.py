"""The sampler measures what it says, on its schedule, and leaves no trace in a training."""

from __future__ import annotations

import copy
import gc
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.modules import module as torch_modules

import steadygrad
import steadygrad.torch as sg
from steadygrad.kernels import native
from steadygrad.runlog import RunWriter
from steadygrad.runlog.sampled import SHARE, SPARE, UnusualSteps
from steadygrad.torch.record.activations import ELEMENTS, ActivationWatch, _of_units
from steadygrad.torch.record.sampling import Sampler


class Notes:
    """A writer that keeps what it is given."""

    def __init__(self):
        self.samples = {}
        self.info = {}
        self.events = []

    def write_sample(self, name, step, ids, values):
        self.samples[name, step] = dict(zip(np.asarray(ids).tolist(), values, strict=True))

    def write_event(self, kind, data, step=None):
        self.events.append((kind, step, data))

    def update_info(self, **facts):
        self.info.update(facts)


def train(model, x, steps, sampler=None, lr=0.1):
    params = list(model.parameters())
    ids = np.arange(len(params))
    optimizer = torch.optim.SGD(params, lr=lr)
    for step in range(steps):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        if sampler:
            sampler.at_step(step, params, ids)
        optimizer.step()
    if sampler:
        sampler.close()
    return params


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3), nn.Tanh())


def test_the_schedule_is_dense_first_and_sparse_later():
    notes = Notes()
    sampler = Sampler(notes, every=16)
    assert [s for s in range(50) if sampler.due(s)] == [0, 1, 2, 4, 8, 16, 32, 48]
    sampler.close()


def test_figures_are_those_of_the_weights_before_the_step():
    notes = Notes()
    model = network()
    with torch.no_grad():
        model[0].weight.fill_(2.0)
        model[0].bias.fill_(-1e3)  # every unit is dead: this layer never moves
    before = [p.detach().clone() for p in model.parameters()]
    after = train(model, torch.ones(5, 4), 1, Sampler(notes))
    for i, (old, new) in enumerate(zip(before, after, strict=True)):
        size = old.double().norm().item()
        assert notes.samples["weight_norm", 0][i] == pytest.approx(size, rel=1e-6)
        moved = (new.detach() - old).double().norm().item()
        assert notes.samples["update_ratio", 0][i] == pytest.approx(moved / size, rel=1e-6)
    assert notes.samples["weight_std", 0][0] == 0.0
    assert notes.samples["activation_zero", 0][0] == 1.0
    assert notes.samples["update_ratio", 0][0] == 0.0


def test_deviations_are_of_each_tensor_and_zero_for_a_constant():
    notes = Notes()
    torch.manual_seed(3)
    weights = [torch.full((300, 21), 0.1), torch.randn(40, 40) * 1e-3 + 7, torch.randn(2, 3)]
    sampler = Sampler(notes)
    sampler.at_step(0, weights, np.arange(3))
    sampler.close()
    for i, weight in enumerate(weights):
        flat = weight.double().numpy().ravel()
        taken = flat[:: -(-flat.size // 4096)]
        assert notes.samples["weight_std", 0][i] == pytest.approx(taken.std(), rel=1e-9, abs=0)
        norm = notes.samples["weight_norm", 0][i]
        assert norm == pytest.approx(np.linalg.norm(flat), rel=1e-12)
    assert notes.samples["weight_std", 0][0] == 0.0


def test_a_large_activation_is_read_in_part_and_its_dead_units_in_full():
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(3, 40), nn.ReLU(), nn.Linear(40, 1))
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.fill_(-1.0)
        model[0].weight[:10, 0] = 2.0  # these units live, for one row that no part would hold
    x = torch.zeros(5000, 3)
    x[1, 0] = 5.0
    notes = Notes()
    train(model, x, 1, Sampler(notes))
    assert notes.samples["activation_zero", 0][0] == pytest.approx(0.75)


def test_saturation_is_seen_behind_a_functional_tanh():
    class Squashed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.second(torch.tanh(self.first(x)))

    for scale, expected in ((1e3, 1.0), (1e-3, 0.0)):
        notes, model = Notes(), Squashed()
        with torch.no_grad():
            model.first.weight.fill_(scale)
        train(model, torch.ones(5, 4), 1, Sampler(notes))
        assert notes.samples["activation_saturated", 0][0] == expected


def test_frozen_parameters_are_noted():
    notes = Notes()
    model = network()
    model[0].weight.requires_grad_(False)
    train(model, torch.ones(5, 4), 1, Sampler(notes))
    assert notes.info["frozen"] == [0]


def test_broken_weights_are_written_as_inf():
    notes = Notes()
    model = network()
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    train(model, torch.ones(5, 4), 1, Sampler(notes))
    assert notes.samples["weight_norm", 0][0] == float("inf")


def test_recurrent_matrices_have_a_radius_and_a_length():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.RNN(2, 6, batch_first=True)
            nn.init.orthogonal_(self.rnn.weight_hh_l0, gain=1.3)

        def forward(self, x):
            return self.rnn(x)[0]

    notes, model = Notes(), Recurrent()
    place = [n for n, _ in model.named_parameters()].index("rnn.weight_hh_l0")
    train(model, torch.ones(3, 11, 2), 1, Sampler(notes))
    assert notes.samples["spectral_radius", 0] == {place: pytest.approx(1.3, rel=1e-6)}
    assert notes.samples["recurrent_steps", 0] == {place: 11.0}


def test_a_cell_called_by_hand_is_recurrent_too():
    class ByHand(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.Linear(6, 6)

        def forward(self, x):
            for _ in range(9):
                x = torch.tanh(self.cell(x))
            return x

    notes, model = Notes(), ByHand()
    train(model, torch.ones(3, 6), 1, Sampler(notes))
    assert notes.samples["recurrent_steps", 0] == {0: 9.0}


def test_sampling_changes_no_weight_and_draws_no_random_number():
    x = torch.linspace(-1, 1, 20).reshape(5, 4)
    bare = train(network(), x, 20)
    state = torch.get_rng_state()
    sampled = train(network(), x, 20, Sampler(Notes(), every=4))
    assert all(torch.equal(a, b) for a, b in zip(bare, sampled, strict=True))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.filterwarnings("ignore:Using `torch.compile")  # which says that there are hooks
def test_a_compiled_model_has_none_of_it_in_its_graph():
    watch = ActivationWatch()
    watch.start()
    try:
        whole = torch.compile(network(), backend="eager", fullgraph=True)  # a hook would break it
        whole(torch.randn(3, 4)).sum().backward()
    finally:
        watch.stop()
        torch._dynamo.reset()
    assert not watch.figures()["activation_std"]


def test_modules_of_another_optimizer_are_its_own_watchs():
    first, second = network(), network()
    figures = []
    for params in (first.parameters(), second.parameters(), None):
        watch = ActivationWatch()
        watch.start(None if params is None else list(params))
        torch.manual_seed(1)
        (first(torch.randn(5, 4)) + second(torch.randn(5, 4))).sum().backward()
        watch.stop()
        figures.append(watch.figures())
    for name, of_all in figures[2].items():
        halves = figures[0][name], figures[1][name]
        assert halves[0].keys() | halves[1].keys() == of_all.keys()
        assert halves[0].keys().isdisjoint(halves[1])
        assert {**halves[0], **halves[1]} == of_all


def test_no_hook_is_left_in_modules_or_globally():
    model = network()
    sampler = Sampler(Notes())
    assert torch_modules._global_forward_hooks
    copied = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in copied.modules())
    train(model, torch.ones(5, 4), 1, sampler)
    assert not torch_modules._global_forward_hooks
    assert not torch_modules._global_forward_pre_hooks


def test_attach_samples_into_the_run_file(tmp_path):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    path = tmp_path / "run.db"
    with sg.attach(optimizer, clip="none", model=model, run=path):
        for _ in range(5):
            optimizer.zero_grad()
            model(torch.ones(5, 4)).square().mean().backward()
            optimizer.step()
    run = steadygrad.open_run(path)
    steps, norms = run.samples("weight_norm")
    assert steps.tolist() == [0, 1, 2, 4]
    assert np.isfinite(norms).all()
    assert run.samples("update_ratio")[0].tolist() == [0, 1, 2, 4]
    assert np.isfinite(run.samples("activation_zero")[1][:, 0]).all()


def test_weights_of_a_search_are_those_that_it_began_at(tmp_path):
    model, x = network().eval(), torch.randn(16, 4)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4)
    path, began = tmp_path / "run.db", []

    def evaluated():
        optimizer.zero_grad()
        loss = (model(x) - 1).square().mean()
        loss.backward()
        return loss

    with sg.attach(optimizer, clip="none", model=model, run=path):
        for _ in range(3):
            began.append([p.detach().double().norm().item() for p in model.parameters()])
            optimizer.step(evaluated)
    steps, norms = steadygrad.open_run(path).samples("weight_norm")
    assert steps.tolist() == [0, 1, 2]
    np.testing.assert_allclose(norms, began, rtol=1e-6)
    _, ratios = steadygrad.open_run(path).samples("update_ratio")
    assert (ratios[:, 0] > 1e-4).all()


def test_updates_after_an_unusual_step_are_sampled_and_the_schedule_stays():
    torch.manual_seed(1)
    model, x = nn.Linear(4, 3), torch.randn(8, 4)
    params = list(model.parameters())
    optimizer = torch.optim.SGD(params, lr=1e-6)
    notes = Notes()
    sampler = Sampler(notes)
    moved = {}
    for step in range(60):
        optimizer.zero_grad()
        (model(x) * (100.0 if step == 40 else 1.0)).square().mean().backward()
        norm = float(nn.utils.get_total_norm([p.grad for p in params]))
        sampler.at_step(step, params, np.arange(2))
        before = [p.detach().clone() for p in params]
        optimizer.step()
        sampler.notice(step, norm, float("nan"))
        moved[step] = float((params[0].detach() - before[0]).norm() / before[0].norm())
    sampler.close()
    of = {name: [s for n, s in notes.samples if n == name] for name, _ in notes.samples}
    assert of["unusual_update"] == list(range(41, 49))
    assert of["update_ratio"] == of["weight_norm"] == [0, 1, 2, 4, 8, 16, 32]
    assert notes.samples["unusual_update", 41][0] == pytest.approx(moved[41], rel=1e-5)
    assert sampler.idle_before == 63  # the next step on the schedule is 64


def test_a_run_that_is_unusual_throughout_is_sampled_no_more_than_its_share():
    watch = UnusualSteps()
    asked = sum(watch.after(step, 10.0 ** (step % 7), 1.0) for step in range(1, 6400))
    assert asked <= SPARE + 6400 // SHARE


def test_an_optimizer_that_is_dropped_takes_its_hooks_along(tmp_path):
    """Else each of a script that makes one a task would slow down every forward pass after it."""
    hooks = torch_modules._global_forward_hooks
    gc.collect()
    before = len(hooks)
    writer = RunWriter(tmp_path / "run.db")
    optimizers = [torch.optim.SGD(nn.Linear(2, 1).parameters(), 0.1) for _ in range(3)]
    for optimizer in optimizers:
        sg.attach(optimizer, run=writer)
    assert len(hooks) == before + 3  # the first step is watched
    optimizers.clear()
    del optimizer
    gc.collect()
    assert len(hooks) == before
    writer.close()


@pytest.mark.skipif(not native.AVAILABLE, reason="the extension is not built")
@pytest.mark.parametrize("convolved", [False, True])
@pytest.mark.parametrize("curve", [torch.tanh, torch.sigmoid, torch.relu, torch.zeros_like])
def test_what_torch_reads_of_an_activation_is_what_c_reads(curve: Any, convolved: bool) -> None:
    value = curve(4 * torch.randn(6, 5, 7, generator=torch.Generator().manual_seed(0)))
    figures = native.try_units(value, 1 if convolved else -1, ELEMENTS)
    if figures is None:  # a torch that tells C of no tensor
        return
    assert [float(figure) for figure in _of_units(value, convolved)] == pytest.approx(figures)
