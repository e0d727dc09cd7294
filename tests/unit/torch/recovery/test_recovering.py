"""A training that is struck heals; one that is not stays as it is, bit for bit."""

from __future__ import annotations

import copy
import io
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import steadygrad
import steadygrad.torch as sg
from steadygrad.errors import RecoveryError, SteadyGradWarning, UsageError
from steadygrad.launch.resuming import NOT_TAKEN, hand_over, trouble_at_the_end
from steadygrad.paths import as_typed
from steadygrad.recovery import events_of
from steadygrad.recovery.files import write_snapshot
from steadygrad.recovery.resuming import RESUME
from steadygrad.torch.recovery import on_disk
from steadygrad.torch.recovery.again import StepAgain
from steadygrad.torch.recovery.beside_state import load_in_place
from steadygrad.torch.recovery.buffers import Buffers, all_finite
from steadygrad.torch.recovery.generators import generators, set_generators
from steadygrad.torch.recovery.training_state import load_portable, packed, portable, unpacked
from steadygrad.torch.step.snapshot import Snapshot, same_bits

from ....optimizers import Lookahead, Remembers, SlowWeights, TwoKinds

STEPS = 60
DATA = torch.randn(64, 6, generator=torch.Generator().manual_seed(3))
Fault = Callable[[int, torch.nn.Module, torch.Tensor], None]
Weights = dict[str, torch.Tensor]

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-3),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-3),
    "AdamW-amsgrad": lambda p: torch.optim.AdamW(p, lr=1e-3, amsgrad=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, centered=True, momentum=0.5),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
    "Adadelta": lambda p: torch.optim.Adadelta(p),
    "Adamax": lambda p: torch.optim.Adamax(p, lr=1e-3),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=1e-3),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=1e-3),
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-2),
    "ASGD": lambda p: torch.optim.ASGD(p, lr=1e-2),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=1e-3),
}


class Training:
    """A model with BatchNorm and dropout, a schedule, shuffled and augmented data."""

    def __init__(self, optimizer: str, recover: str | None, run: Path | None = None) -> None:
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        layers = torch.nn.Linear(6, 16), torch.nn.BatchNorm1d(16), torch.nn.Dropout(0.2)
        self.model = torch.nn.Sequential(*layers, torch.nn.Tanh(), torch.nn.Linear(16, 1))
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, STEPS)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=7)
        arguments = {} if recover is None else {"recover": recover}
        self.steady = sg.attach(
            self.optimizer, clip="zclip", model=self.model, run=run, **arguments
        )

    def train(
        self, first: int, last: int, fault: Fault | None = None, scaled: bool = False
    ) -> None:
        for step in range(first, last):
            order = torch.randperm(64)[:16]
            inputs = DATA[order]
            inputs = inputs * (1 + 0.1 * np.random.randn()) + 0.01 * random.random()
            if fault is not None:
                fault(step, self.model, inputs)
            self.optimizer.zero_grad()
            loss = (self.model(inputs) - inputs.sum(1, keepdim=True)).square().mean()
            if scaled:
                self.scaler.scale(loss).backward()
                self.scaler.step(self.optimizer)
                self.scaler.update()
            else:
                loss.backward()
                self.optimizer.step()
            self.schedule.step()

    def end(self) -> Weights:
        self.steady.detach()
        return {name: each.clone() for name, each in self.model.state_dict().items()}


def same(left: Weights, right: Weights) -> bool:
    return all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize(("optimizer", "scaled"), [("SGD", False), ("AdamW-amsgrad", True)])
def test_nothing_changes_where_nothing_strikes(optimizer: str, scaled: bool) -> None:
    plain = Training(optimizer, None)
    plain.train(0, STEPS, scaled=scaled)
    guarded = Training(optimizer, "auto+snapshots:stride=7")
    guarded.train(0, STEPS, scaled=scaled)
    assert guarded.steady.recoveries == []
    assert same(plain.end(), guarded.end())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_restored_training_goes_on_as_if_never_interrupted(
    optimizer: str, tmp_path: Path
) -> None:
    scaled = optimizer in ("SGD", "AdamW-amsgrad")
    spec = f"auto+snapshots:{tmp_path / 'snapshots'},stride=10"
    whole = Training(optimizer, None)
    whole.train(0, 30, scaled=scaled)
    drawn = generators()
    first = Training(optimizer, spec)
    first.train(0, 27, scaled=scaled)
    first.end()
    second = Training(optimizer, spec)
    if scaled:
        second.steady.remember(scaler=second.scaler)
    step = second.steady.restore()
    assert step in (10, 20)  # a disk may be slow, and weights that jump wait
    second.train(step, 30, scaled=scaled)
    # or something else in this process has drawn, a thread of another test perhaps
    assert same_bits(generators(), drawn)
    assert same(whole.end(), second.end())


PARTICULAR = {
    "LBFGS": (torch.nn.Linear(6, 3), lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3)),
    "Muon": (torch.nn.Linear(6, 3, bias=False), lambda p: torch.optim.Muon(p, lr=0.01)),
    "SparseAdam": (torch.nn.Embedding(64, 6, sparse=True), torch.optim.SparseAdam),
    "Lookahead": (torch.nn.Linear(6, 3), Lookahead),
    "Remembers": (torch.nn.Linear(6, 3), Remembers),
    "TwoKinds": (torch.nn.Linear(6, 3), TwoKinds),
}
"""Optimizers that need a closure, matrices or sparse gradients, or keep what no state dict has."""


def test_every_optimizer_of_torch_is_restored_in_a_test() -> None:
    kinds = {
        name
        for name, kind in vars(torch.optim).items()
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)
    }
    assert kinds - {"Optimizer"} <= OPTIMIZERS.keys() | PARTICULAR.keys()


@pytest.mark.parametrize("name", PARTICULAR)
def test_a_particular_optimizer_is_restored_as_well(name: str, tmp_path: Path) -> None:
    def begun(folder: str) -> tuple[torch.nn.Module, torch.optim.Optimizer, sg.Steady]:
        model = copy.deepcopy(PARTICULAR[name][0])
        optimizer = PARTICULAR[name][1](model.parameters())
        spec = f"auto+snapshots:{tmp_path / folder},stride=4"
        return model, optimizer, sg.attach(optimizer, "none", model, recover=spec)

    def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for _ in steps:
            order = torch.randperm(64)[:16]

            def closure(chosen: torch.Tensor = order) -> torch.Tensor:
                model.zero_grad()
                loss = model(chosen if name == "SparseAdam" else DATA[chosen]).square().mean()
                loss.backward()
                return loss

            optimizer.step(closure)

    torch.manual_seed(0)
    whole, optimizer, steady = begun("whole")
    train(whole, optimizer, range(10))
    steady.detach()
    torch.manual_seed(0)
    first, optimizer, steady = begun("first")
    train(first, optimizer, range(4))
    while not list(tmp_path.glob("first/*/step-000000000.snapshot")):
        time.sleep(0.002)  # while one is being written, no other is
    train(first, optimizer, range(4, 7))
    steady.detach()
    second, optimizer, steady = begun("first")
    step = steady.restore()
    assert step == 4
    train(second, optimizer, range(step, 10))
    steady.detach()
    assert same(whole.state_dict(), second.state_dict())


def nan_in_the_data(step: int, model: torch.nn.Module, inputs: torch.Tensor) -> None:
    if step == 40:
        inputs[0, 0] = torch.nan


def broken_weight(step: int, model: torch.nn.Module, inputs: torch.Tensor) -> None:
    if step == 40:
        next(model.parameters()).data[0, 0] = torch.nan


@pytest.mark.parametrize(
    ("fault", "acts", "scaled"),
    [
        (nan_in_the_data, {"skip"}, False),
        (broken_weight, {"rollback"}, False),
        (broken_weight, {"rollback"}, True),
    ],
)
def test_a_struck_training_heals(
    fault: Fault, acts: set[str], scaled: bool, tmp_path: Path
) -> None:
    run = tmp_path / "run.db"
    training = Training("AdamW", "auto+snapshots:stride=7", run)
    training.train(0, STEPS, fault, scaled)
    told = training.steady.recoveries
    weights = training.end()
    assert {each.act for each in told} == acts
    assert all(bool(each.isfinite().all()) for each in weights.values())
    assert events_of(steadygrad.open_run(run).events) == told


@pytest.mark.parametrize(
    ("fault", "nature"), [("data", "persistent"), ("gradient", "transient"), ("by hand", "unknown")]
)
def test_a_replay_tells_a_transient_fault_from_one_that_comes_back(fault: str, nature: str) -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.01)
    steady = sg.attach(optimizer, clip="none", recover="skip:2")
    for step in range(3):
        optimizer.zero_grad()
        inputs = torch.full((3,), torch.nan if (fault, step) == ("data", 1) else 1.0)
        (weight * inputs).square().sum().backward()
        assert weight.grad is not None
        if fault == "gradient" and step == 1:
            weight.grad[0] = torch.nan  # as a bad device or link would
        if fault == "by hand" and step == 1:
            optimizer.step()
            weight.grad = torch.full((3,), torch.nan)  # of which no backward pass tells
        optimizer.step()
    assert [each.nature for each in steady.recoveries] == [nature]
    assert bool(weight.isfinite().all())
    steady.detach()


def test_the_same_training_is_lost_without_recovery() -> None:
    training = Training("AdamW", None)
    training.train(0, STEPS, broken_weight)
    assert not all(bool(each.isfinite().all()) for each in training.end().values())


def nan_in_a_row_that_is_used_late(struck: int) -> tuple[torch.nn.Embedding, sg.Steady]:
    """A row breaks before the step `struck`, and is in use from step 13 on."""
    model = torch.nn.Embedding(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with sg.attach(optimizer, "none", model, recover="rollback:2+snapshots:stride=5") as steady:
        for step in range(14):
            if step == struck:
                model.weight.data[3] = torch.nan
            optimizer.zero_grad()
            model(torch.tensor([0, 1, 3 if step == 13 else 2])).square().mean().backward()
            optimizer.step()
    return model, steady


def test_weights_with_nan_are_never_kept_as_good() -> None:
    model, steady = nan_in_a_row_that_is_used_late(struck=8)  # a snapshot is due at 10
    assert [(each.act, each.to_step) for each in steady.recoveries] == [("rollback", 5)]
    assert bool(model.weight.isfinite().all())
    with pytest.raises(RecoveryError, match="no good snapshot"):  # they never moved into it
        nan_in_a_row_that_is_used_late(struck=0)


@pytest.mark.parametrize("broken", [lambda x: x * 1e5, lambda x: x + 1e5])
def test_inputs_that_running_statistics_alone_show_are_dropped(
    broken: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    torch.manual_seed(0)
    layers = torch.nn.Linear(6, 16), torch.nn.BatchNorm1d(16), torch.nn.ReLU()
    model = torch.nn.Sequential(*layers, torch.nn.Linear(16, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with sg.attach(optimizer, "norm:1.0", model, recover="auto+snapshots:stride=10") as steady:
        for step in range(60):
            inputs = torch.randn(16, 6)
            answers = inputs.sum(1, keepdim=True).sign()
            given = broken(inputs) if 40 <= step < 44 else inputs
            optimizer.zero_grad()
            (model(given) - answers).square().mean().backward()
            optimizer.step()
        acts = [(each.step, each.act, each.trigger) for each in steady.recoveries if each.trigger]
    assert acts == [(step, "skip", "statistics jump") for step in range(40, 44)]
    assert float(model[1].running_var.max()) < 10.0


def test_the_budget_ends_with_the_last_good_step(tmp_path: Path) -> None:
    run = tmp_path / "of it.db"
    training = Training("SGD", "rollback:1+snapshots:stride=5", run)

    def again(step: int, model: torch.nn.Module, inputs: torch.Tensor) -> None:
        if step in (30, 40):
            broken_weight(40, model, inputs)

    with pytest.raises(RecoveryError, match=r"last good step is \d+") as ended:
        training.train(0, STEPS, again)
    assert str(ended.value).endswith(f"steadygrad diagnose {as_typed(run)}")
    assert all(bool(each.isfinite().all()) for each in training.end().values())


def test_closures_are_judged_too() -> None:
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.LBFGS([weight], lr=0.1, max_iter=3)
    steady = sg.attach(optimizer, clip="none", recover="auto+snapshots:stride=5")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (weight - 2).square().sum()
        loss.backward()
        return loss

    for step in range(20):
        if step == 12:
            weight.data[0] = torch.nan
        optimizer.step(closure)
    assert [each.act for each in steady.recoveries] == ["rollback"]
    assert bool(weight.isfinite().all())
    steady.detach()


@pytest.mark.parametrize(
    "wrong", [{"recover": "auto+snapshots:memory=10"}, {"recover": "auto", "on_nonfinite": "raise"}]
)
def test_what_cannot_be_is_refused(wrong: dict[str, str]) -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    with pytest.raises(UsageError, match="recover"):
        sg.attach(optimizer, **wrong)
    sg.attach(optimizer).detach()  # nothing of the refused attachment stays


def test_an_optimizer_state_with_nan_is_never_kept_as_good() -> None:
    training = Training("SGD", "rollback:2+snapshots:stride=5")
    training.train(0, 10)
    next(iter(training.optimizer.state.values()))["momentum_buffer"][0] = torch.nan
    training.train(10, 14)  # loss and weights of step 10 are finite still, a snapshot is due there
    weights = training.end()
    assert [(each.act, each.to_step) for each in training.steady.recoveries] == [("rollback", 5)]
    assert all(bool(each.isfinite().all()) for each in weights.values())


def test_a_new_process_is_handed_the_snapshots_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(RESUME, "{}")
    first = Training("SGD", f"auto+snapshots:{tmp_path / 'first'},stride=5", tmp_path / "run.db")
    first.steady.remember(scaler=first.scaler)  # of several, none is taken for its own
    first.train(0, 12)
    first.end()
    hand_over(str(tmp_path / "run.db"))
    assert trouble_at_the_end() == NOT_TAKEN
    second = Training("SGD", f"auto+snapshots:{tmp_path / 'second'},stride=5")
    second.steady.remember(scaler=second.scaler)
    assert second.steady.restore() in (5, 10)
    assert trouble_at_the_end() == ""
    second.end()


def test_a_run_without_snapshots_cannot_be_resumed(tmp_path: Path) -> None:
    training = Training("SGD", "auto", tmp_path / "run.db")
    training.train(0, 2)
    training.end()
    with pytest.raises(UsageError, match="no snapshots on disk"):
        hand_over(str(tmp_path / "run.db"))


def _inference() -> torch.Tensor:
    with torch.inference_mode():
        return torch.zeros(3)


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.zeros(3).to(torch.float8_e4m3fn),
        lambda: torch.eye(3).to_sparse(),
        lambda: torch.zeros(3, device="meta"),
        lambda: torch.zeros(1).expand(3),
        torch.nn.parameter.UninitializedBuffer,
        _inference,
    ],
)
def test_any_kind_of_buffer_is_put_up_with(make: Callable[[], torch.Tensor]) -> None:
    module = torch.nn.Module()
    module.register_buffer("odd", make())
    buffers = Buffers([module])
    buffers.note()
    assert buffers.are_sound(buffers.copies())
    buffers.put_back()


def test_complex_weights_with_nan_are_not_finite() -> None:
    assert all_finite([torch.zeros(2, dtype=torch.complex64)])
    assert not all_finite([torch.full((2,), torch.nan, dtype=torch.complex64)])


def test_a_loss_that_is_no_single_number_is_not_taken_for_nan() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    with sg.attach(optimizer, clip="none", recover="auto") as steady:
        steady.observe_loss(torch.ones(3))
        weight.grad = torch.ones(2)
        optimizer.step()
        assert steady.recoveries == []
    torch.testing.assert_close(weight.data, torch.full((2,), 0.9))


def test_what_is_written_is_the_snapshot_not_what_the_weights_are_by_then() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.5, momentum=0.9)
    weight.grad = torch.ones(2)
    optimizer.step()
    snapshot = Snapshot(optimizer)
    optimizer.step()  # as SAM does, before its closure is evaluated
    optimizer.zero_grad()
    saved = portable(optimizer, ["w"], [weight], snapshot)
    optimizer.param_groups[0]["lr"] = 7.0
    assert load_portable(optimizer, ["w"], [weight], unpacked(packed(saved))) == []
    assert weight.tolist() == [0.5, 0.5]
    assert optimizer.state[weight]["momentum_buffer"].tolist() == [1.0, 1.0]
    assert optimizer.param_groups[0]["lr"] == 0.5


class Command:
    """Runs a command where it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder / "it ran"),)


def saved_by_torch(value: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


@pytest.mark.parametrize("case", ["code", "a list", "no snapshot", "no torch file"])
def test_a_snapshot_from_elsewhere_runs_nothing_and_changes_nothing(
    case: str, tmp_path: Path
) -> None:
    contents = {
        "code": saved_by_torch({"weights": Command(tmp_path)}),
        "a list": saved_by_torch([1]),
        "no snapshot": saved_by_torch({"weights": {}}),
        "no torch file": b"PK\x03\x04 and no more",
    }
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    write_snapshot(tmp_path / "rank-0", 7, contents[case], 3)
    with (
        sg.attach(optimizer, clip="none", recover=f"auto+snapshots:{tmp_path}") as steady,
        pytest.raises(UsageError, match=r"the snapshot of step 7 in .*: remove it") as caught,
    ):
        steady.restore()
    assert "weights_only" not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "it ran").exists()
    assert weight.tolist() == [1.0, 1.0]


def test_a_snapshot_that_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    class Sampler:
        def state_dict(self) -> dict[str, object]:
            return {"order": np.arange(3)}

        def load_state_dict(self, state: dict[str, object]) -> None: ...

    def train() -> None:
        weight = torch.nn.Parameter(torch.ones(2))
        optimizer = torch.optim.SGD([weight], lr=0.1)
        steady = sg.attach(optimizer, clip="none", recover=f"auto+snapshots:{tmp_path}")
        steady.remember(sampler=Sampler())
        weight.grad = torch.ones(2)
        optimizer.step()
        steady.detach()  # waits for the thread that writes

    with pytest.warns(SteadyGradWarning, match=r"more than plain values.*of: sampler"):
        train()
    assert not list(tmp_path.rglob("*.snapshot"))


def test_a_generator_of_another_kind_in_numpys_place_is_left_alone() -> None:
    own = np.random.get_bit_generator()
    np.random.set_bit_generator(np.random.PCG64(0))
    try:
        states = generators()
        set_generators(states)
    finally:
        np.random.set_bit_generator(own)
    assert states["numpy"] is None
    first, drawn = generators(), np.random.rand()
    set_generators(first)
    assert np.random.rand() == drawn


class LockedSchedule(torch.optim.lr_scheduler.LambdaLR):
    def state_dict(self) -> dict[str, object]:
        return {"lock": threading.Lock()}


def test_a_state_that_cannot_be_copied_ends_no_training() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    schedule = LockedSchedule(optimizer, lambda _: 1.0)
    with sg.attach(optimizer, clip="none", recover="auto") as steady:
        weight.grad = torch.ones(2)
        with pytest.warns(SteadyGradWarning, match="no snapshot was taken"):
            optimizer.step()
        schedule.step()
        assert steady.recoveries == []
    torch.testing.assert_close(weight.data, torch.full((2,), 0.9))


def test_two_optimizers_never_write_to_one_folder(tmp_path: Path) -> None:
    optimizers = [torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1) for _ in range(2)]
    spec = f"auto+snapshots:{tmp_path}"
    first = sg.attach(optimizers[0], recover=spec)
    with pytest.raises(UsageError, match="optimizer_index=1"):
        sg.attach(optimizers[1], recover=spec)
    first.detach()
    sg.attach(optimizers[1], recover=spec).detach()


def test_an_average_with_nan_is_never_kept_as_good() -> None:
    training = Training("SGD", "rollback:2+snapshots:stride=5")
    average = torch.optim.swa_utils.AveragedModel(training.model)
    training.steady.remember(average=average)
    training.train(0, 8)
    next(average.parameters()).data[0] = torch.nan
    training.train(8, 13)  # a snapshot is due at 10
    next(average.parameters()).data[0] = 0.0
    broken_weight(40, training.model, DATA)
    training.train(13, 14)
    assert [each.to_step for each in training.steady.recoveries] == [5]
    training.end()


@pytest.mark.parametrize("again", [False, True])
def test_a_rate_that_is_too_hot_is_seen_by_what_earlier_weights_would_have_done(
    again: bool,
) -> None:
    torch.manual_seed(0)
    layers = torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1)
    model = torch.nn.Sequential(*layers, torch.nn.Tanh())  # its loss cannot spike
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def loss(inputs: torch.Tensor) -> torch.Tensor:
        return (model(inputs) - inputs.sum(1, keepdim=True).tanh()).square().mean()

    with sg.attach(optimizer, "norm:1.0", model, recover="auto+snapshots:stride=10") as steady:
        draws = torch.Generator().manual_seed(0)
        for step in range(160):
            inputs = torch.randn(16, 6, generator=draws)
            if step == 80 or (again and step > 80):  # as a scheduler would set it
                optimizer.param_groups[0]["lr"] = 20.0
            optimizer.zero_grad()
            loss(inputs).backward()
            optimizer.step()
        acts = steady.recoveries
    assert "sustained divergence" in {each.trigger for each in acts}
    back = [each for each in acts if each.act == "rollback"]
    assert back[0].to_step is not None
    assert 40 <= back[0].to_step <= 80
    assert ("lower rate" in {each.act for each in acts}) is again
    held_out = torch.randn(64, 6, generator=draws)
    assert loss(held_out) < 0.1


@pytest.mark.parametrize("backwards", [1, 2])
def test_a_replay_with_earlier_weights_gives_their_loss_and_leaves_no_trace(backwards: int) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    again, then = StepAgain(optimizer), Snapshot(optimizer)
    weights = {name: each.clone() for name, each in model.state_dict().items()}
    for parameter in model.parameters():
        parameter.data += 0.3
    state = torch.get_rng_state()
    losses = [model(DATA).square().mean() for _ in range(backwards)]
    for loss in losses:
        loss.backward()
    moved = {name: each.clone() for name, each in model.state_dict().items()}
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    after = torch.get_rng_state()
    replayed = again.losses(then)
    assert same(model.state_dict(), moved)
    assert all(torch.equal(g, p.grad) for g, p in zip(gradients, model.parameters(), strict=True))
    assert torch.equal(torch.get_rng_state(), after)
    again.end()
    torch.set_rng_state(state)
    model.load_state_dict(weights)
    before = sum(model(DATA).square().mean().item() for _ in range(backwards))
    assert replayed == (sum(loss.item() for loss in losses), before)


def test_optimizers_of_one_run_keep_their_snapshots_apart(tmp_path: Path) -> None:
    weights = [torch.nn.Parameter(torch.full((2 + n,), float(n))) for n in (0, 1)]
    optimizers = [torch.optim.SGD([weight], lr=0.1) for weight in weights]
    spec = f"auto+snapshots:{tmp_path},stride=1"
    handles = [
        sg.attach(optimizer, recover=spec, optimizer_index=n)
        for n, optimizer in enumerate(optimizers)
    ]
    for optimizer, weight in zip(optimizers, weights, strict=True):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    for handle in handles:
        handle.detach()
    assert sorted(path.name for path in tmp_path.glob("rank-*")) == ["rank-0", "rank-0-optimizer-1"]


def test_what_a_snapshot_has_no_place_for_is_told_and_nothing_of_it_is_put_back(
    tmp_path: Path,
) -> None:
    def begun(plan: object) -> tuple[Remembers, sg.Steady]:
        optimizer = Remembers([torch.nn.Parameter(torch.ones(2))])
        optimizer.plan = plan
        return optimizer, sg.attach(
            optimizer, "none", recover=f"auto+snapshots:{tmp_path},stride=1"
        )

    optimizer, steady = begun(Remembers([torch.ones(1)]).plan)
    optimizer.param_groups[0]["params"][0].grad = torch.ones(2)
    optimizer.step()
    steady.detach()
    optimizer, steady = begun(None)
    with (
        pytest.warns(SteadyGradWarning, match="not random generators"),  # of a first step
        pytest.warns(SteadyGradWarning, match="not attributes of the Remembers"),
    ):
        assert steady.restore() == 0
    steady.detach()
    assert (len(optimizer.rates), optimizer.plan) == (0, None)


def test_optimizers_that_share_groups_and_state_do_so_when_one_is_restored() -> None:
    inner = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1, momentum=0.9)
    outer = SlowWeights(inner)
    saved = copy.deepcopy(inner.state_dict())
    saved["param_groups"][0]["lr"] = 0.5
    load_in_place([outer, inner], inner, saved)
    assert outer.param_groups is inner.param_groups
    assert outer.param_groups[0]["lr"] == 0.5


def test_the_newest_snapshot_is_written_that_was_due_while_another_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, go_on = [], threading.Event()

    def write(folder: Path, step: int, content: bytes, keep: int) -> None:
        go_on.wait(20)
        steps.append(step)

    monkeypatch.setattr(on_disk, "write_snapshot", write)
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    with sg.attach(optimizer, clip="none", recover=f"auto+snapshots:{tmp_path},stride=1"):
        for _ in range(5):
            weight.grad = torch.ones(2)
            optimizer.step()
        go_on.set()
    assert steps == [0, 4]
