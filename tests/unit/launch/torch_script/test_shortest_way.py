"""A step at which nothing is decided goes a shorter way than others, and is recorded alike."""

from __future__ import annotations

import os
import re
import signal
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

from steadygrad.kernels import native
from steadygrad.launch.undoing import undo_all
from steadygrad.runlog import open_run
from steadygrad.runlog.pump import Pump
from steadygrad.torch import clip_grad_norm_, clip_grad_value_
from steadygrad.torch.clip_calls import arithmetic
from steadygrad.torch.clip_calls.clips import ClipLog
from steadygrad.torch.clip_calls.usual import UsualCalls, UsualVisit
from steadygrad.torch.record.journal import Journal
from steadygrad.torch.step import copies
from steadygrad.torch.step.engine import Engine

Train = Callable[[nn.Module, torch.optim.Optimizer, int], None]


@pytest.fixture(autouse=True)
def no_look_at_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that few steps are left to Python."""
    monkeypatch.setattr(arithmetic, "LOOKED_AT", 0)
    monkeypatch.setattr(arithmetic.HandChanges, "after_backward", lambda *_: None)


def _plain(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    torch.manual_seed(step)
    optimizer.zero_grad()
    (model(torch.randn(8, 3)) - 1).square().mean().backward()
    optimizer.step()


def _clipping(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    torch.manual_seed(step)
    optimizer.zero_grad()
    (model(torch.randn(8, 3)) - 1).square().mean().backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.5 if step % 2 else 50.0)
    optimizer.step()


def _odd(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Steps of all kinds: some without a gradient or a loss, with NaN, inf, or clipped by value."""
    torch.manual_seed(step)
    optimizer.zero_grad()
    loss = (model(torch.randn(8, 3)) - 1).square().mean()
    (loss * float("nan") if step == 7 else loss).backward()
    first = next(model.parameters())
    if step == 9:
        first.grad = None
    elif step == 11:
        first.grad[0, 0] = float("inf")
    elif step == 13:
        nn.utils.clip_grad_value_(model.parameters(), 0.01)
    elif step == 15:
        nn.utils.clip_grad_norm_([first], 0.1)
    optimizer.param_groups[0]["lr"] = torch.tensor(0.01) if step == 17 else 0.01 / (step + 1)
    optimizer.step()
    if step in (7, 11):
        nn.init.constant_(model[0].weight, 0.1)
        for p in model.parameters():
            p.data.nan_to_num_(0.1, 0.1, 0.1)


def _sparse(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Of one parameter each row's gradient comes in two entries, of another some rows are zeros."""
    torch.manual_seed(step)
    optimizer.zero_grad()
    (model(torch.randn(8, 3)) - 1).square().mean().backward()
    first, other = next(model.parameters()), model[2].weight
    rows = torch.arange(4).repeat(2)[None]
    values = torch.cat([first.grad * 3, first.grad * -2])
    first.grad = torch.sparse_coo_tensor(rows, values, first.shape, check_invariants=True)
    other.grad[step % 2] = 0
    other.grad = other.grad.to_sparse(1)
    optimizer.step()


def _seeking(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """From the middle on the origin of a NaN is looked for, and found."""
    torch.manual_seed(step)
    if step == 12:
        optimizer._steadygrad.find_nan(quiet=True)
    optimizer.zero_grad()
    loss = (model(torch.randn(8, 3)) - 1).square().mean()
    (loss * float("nan") if step == 16 else loss).backward()
    optimizer.step()


def _regrouping(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """The groups are a tuple from the middle on, and none at one step."""
    groups = optimizer.param_groups
    if step == 12:
        groups = optimizer.param_groups = tuple(groups)  # type: ignore[assignment]
    if step == 20:
        optimizer.param_groups = []
    _plain(model, optimizer, step)
    optimizer.param_groups = groups


class Nested(torch.optim.SGD):
    """Its step is inside another of its own."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


def _changing(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Now and then the optimizer, its step or the passes before it are not as before."""
    torch.manual_seed(step)
    optimizer.zero_grad()
    loss = (model(torch.randn(8, 3)) - 1).square().mean()

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        again = 3 * (model(torch.randn(8, 3)) - 1).square().mean()
        again.backward()
        return again

    if step == 3:
        x = torch.ones(2, 3, requires_grad=True)
        (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        loss = loss + slope.square().mean()
    if step == 5:
        (model(torch.randn(8, 3)) - 1).square().mean().backward()
    if step == 7:
        loss.backward(torch.tensor(2.0))
    elif step == 9:
        torch.autograd.backward([loss, 3 * (model(torch.randn(8, 3)) - 1).square().mean()])
    elif step == 20:
        (loss * 1000).backward()
    else:
        loss.backward()
    if step == 15:
        optimizer.param_groups[0]["params"].reverse()
    if step == 17:  # as a scaler does with an optimizer that divides by itself
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(8.0), torch.tensor(0.0)
    if step == 18:
        optimizer._steadygrad.observe_loss(0.3)
    optimizer.step(*([closure] if step == 11 else []))
    if step == 17:
        del optimizer.grad_scale, optimizer.found_inf
    if step == 13:
        optimizer.state.clear()
        optimizer.zero_grad()
        get_optimizer_state_dict(model, optimizer)  # takes a step of zeros, to make a state


def _scaling(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """From the middle on a scaler steps."""
    torch.manual_seed(step)
    optimizer.zero_grad()
    loss = (model(torch.randn(8, 3)) - 1).square().mean()
    if step < 12:
        loss.backward()
        optimizer.step()
    else:
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        scaler.scale(loss).backward()
        scaler.step(optimizer)


def _clipping_alike(clip: Callable[..., Any], other: Callable[..., Any]) -> Train:
    """Most steps clip as the one before; the others in every way in which they may not."""

    def train(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        torch.manual_seed(step)

        def passes(factor: float = 1.0) -> None:
            loss = factor * (model(torch.randn(8, 3)) - 1).square().mean()
            scaler.scale(loss).backward()

        optimizer.zero_grad()
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0, enabled=step in (61, 65))
        weights = list(model.parameters())
        first = weights[0]
        if step == 7:
            clip(weights, 1.0)
        if step in (77, 78, 79):
            for weight in weights:
                weight.grad = torch.full_like(weight, 0.1)
        else:
            passes({10: float("nan"), 13: _INF, 70: float("nan"), 86: _INF}.get(step, 1.0))
        if step == 16:
            passes()
        if step == 19:
            first.grad = None
        if step == 22:
            first.grad = torch.where(first == first.max(), first.grad, 0.0).to_sparse()
        if step == 65:
            scaler.unscale_(optimizer)
        try:
            (other if step == 80 else clip)(model.parameters(), *_given(step))
        except RuntimeError:
            optimizer.zero_grad()
            if step == 86:
                passes()
                clip(weights, 0.5)
        if step == 28:
            clip(weights, *_given(step))
        if step == 31:
            clip_grad_value_(weights, _LIMIT)
        if step == 34:
            first.grad.mul_(2)
        if step == 37:
            first.grad = first.grad * 3
        if step in (40, 70):
            passes()
            clip(weights, 0.5)
        if step == 90:
            more = nn.Parameter(torch.ones(2))
            more.grad = torch.ones(2)
            optimizer.add_param_group({"params": [more], "lr": 0.02})
        if step == 49:
            passes()
        if step in (99, 102):
            clip(weights[-1:], 0.1)
        if step != 46:  # the clip before is then of a step that is not taken
            scaler.step(optimizer)
        if step == 90:
            optimizer.param_groups.pop()
        if step in (10, 13, 70, 86):
            optimizer.state.clear()
            for weight in weights:
                weight.data.nan_to_num_(0.1, 0.1, 0.1)

    return train


def _clipping_otherwise(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """The same call at all steps, of what can be read only once; at some it does not return."""
    torch.manual_seed(step)
    optimizer.zero_grad()
    loss = (model(torch.randn(8, 3)) - 1).square().mean()
    (loss * float("nan") if step in (20, 21) else loss).backward()

    others = [nn.Parameter(torch.ones(2)) for _ in model.parameters()]
    for other in others:
        other.grad = torch.ones(2)

    def weights() -> Iterator[nn.Parameter]:
        for place, weight in enumerate(model.parameters()):
            if (step, place) == (30, 2):
                raise LookupError("the script's own")
            yield others[place] if step == 105 else weight

    innermost = "weights"
    try:
        nn.utils.clip_grad_norm_(weights(), _LIMIT, _P, True)
    except LookupError as error:
        innermost = traceback.extract_tb(error.__traceback__)[-1].name
    except RuntimeError:
        if step == 20:
            optimizer.zero_grad()
    assert innermost == "weights"
    if step % 8 == 3:
        spent = weights()
        list(spent)
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            nn.utils.clip_grad_norm_(spent, _LIMIT, _P, True)
        assert len(warned) == hasattr(nn.utils, "get_total_norm")
    if step in (22, 40):
        (model(torch.randn(8, 3)) - 1).square().mean().backward()
        nn.utils.clip_grad_norm_(weights(), _LIMIT, _P, True)
    optimizer.step()
    for weight in model.parameters():
        weight.data.nan_to_num_(0.1)


def _clipping_two(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Two halves are clipped one after the other; at some steps all is, or one of them twice."""
    torch.manual_seed(step)
    optimizer.zero_grad()
    loss = (model(torch.randn(8, 3)) - 1).square().mean()
    (loss * float("nan") if step == 60 else loss).backward()
    first, last = list(model[0].parameters()), tuple(model[2].parameters())
    parts = {20: [first, first], 40: [[*first, *last]], 41: [[*last, *first]]}
    for part in parts.get(step, [first, last]):
        nn.utils.clip_grad_norm_(part, _LIMIT, _P)
    if step == 62:
        (model(torch.randn(8, 3)) - 1).square().mean().backward()
        nn.utils.clip_grad_norm_(last, _LIMIT, _P)
    optimizer.step()
    for weight in model.parameters():
        weight.data.nan_to_num_(0.1)


def _given(step: int) -> tuple[object, ...]:
    """Threshold, and where they are not the usual ones p and whether a NaN raises."""
    inf, nan_raises, by_sum = (_INF,), (_LIMIT, 2.0, True), (_LIMIT, 1.0)
    odd = {4: (0.5,), 13: nan_raises, 86: nan_raises, 52: by_sum, 53: by_sum, 82: inf, 83: inf}
    return odd.get(step, (_LIMIT, _P))


_LIMIT, _P, _INF = 0.25, 2.0, float("inf")
SAMPLES = (
    "weight_norm",
    "update_ratio",
    "unusual_update",
    "activation_std",
    "activation_zero",
)
Record = dict[str, list[Any]]


def _recorded(observe: Callable[..., Any], train: Train, steps: int = 24) -> Record:
    """What a training leaves in the run file, but for the time."""
    observation = observe(force=True)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    torch.optim.SGD(model.parameters())  # from the first one on, the step inside calls hooks too
    optimizer = Nested(model.parameters(), lr=0.01, momentum=0.9, fused=train is _changing)
    for step in range(steps):
        train(model, optimizer, step)
    run = observation.run()
    columns = [name for name in run.steps.dtype.names or () if name != "time"]
    record: Record = {name: run.steps[name].tolist() for name in columns}
    for figures in ("tensor_norms", "tensor_max_abs", "tensor_nonfinite", "tensor_zeros"):
        record[figures] = getattr(run, figures).tolist()
    for name in SAMPLES:
        record[name] = [part.tolist() for part in run.samples(name)]
    record["events"] = [(event.kind, event.step, dict(event.data)) for event in run.events]
    record["weights"] = [parameter.tolist() for parameter in model.parameters()]
    record["facts"] = [run.info["loop"], run.info.get("clip_calls")]
    undo_all()
    return record


@pytest.mark.skipif(not native.AVAILABLE, reason="the extension is not built")
@pytest.mark.parametrize(
    ("train", "short"),
    [
        (_plain, 22),
        (_clipping, 22),
        (_odd, 17),
        (_sparse, 22),
        (_regrouping, 20),
        (_changing, 15),
        (_scaling, 10),
        (_seeking, 10),
    ],
)
def test_both_ways_give_the_same_record(
    train: Train, short: int, observe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    long: list[int] = []
    before = Engine.before

    def counted(engine: Engine, *arguments: Any) -> Any:
        if engine.step is None:  # else it is the step inside of one
            long.append(engine.steps)
        return before(engine, *arguments)

    monkeypatch.setattr(Engine, "before", counted)
    one = _recorded(observe, train)
    assert 24 - len(set(long)) >= short  # at the first tensors are announced, and it is looked into
    monkeypatch.setattr(native, "QUIET", {})
    long.clear()
    other = _recorded(observe, train)
    assert len(set(long)) == 24
    assert len(one["step"]) == 24
    for name in one:
        np.testing.assert_equal(one[name], other[name], name)


@pytest.mark.filterwarnings("ignore::steadygrad.errors.NoGradientsWarning")
@pytest.mark.parametrize(
    ("train", "short", "by_c"),
    [
        (_clipping_alike(nn.utils.clip_grad_norm_, clip_grad_norm_), 55, 45),
        (_clipping_alike(clip_grad_norm_, nn.utils.clip_grad_norm_), 55, 0),
        (_clipping_otherwise, 75, 75),
        (_clipping_two, 200, 150),
    ],
    ids=["torch's", "ours", "once", "two"],
)
def test_a_clip_call_like_the_one_before_is_recorded_alike(
    train: Train,
    short: int,
    by_c: int,
    observe: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[UsualVisit | None] = []
    begin = UsualCalls.begin

    def counted(usual: UsualCalls, *arguments: Any) -> UsualVisit | None:
        asked.append(begin(usual, *arguments))
        return asked[-1]

    monkeypatch.setattr(UsualCalls, "begin", counted)
    first = _recorded(observe, train, 110)
    left_to_python = len(asked)
    asked.clear()
    without = {kind: each for kind, each in native.QUIET.items() if kind != "QuietClip"}
    monkeypatch.setattr(native, "QUIET", without)
    by_python = _recorded(observe, train, 110)
    assert sum(visit is not None for visit in asked) >= short
    assert len(asked) - left_to_python >= by_c * native.AVAILABLE
    monkeypatch.setattr(UsualCalls, "begin", lambda *_: None)
    long = _recorded(observe, train, 110)
    for name in long:
        np.testing.assert_equal(first[name], long[name], name)
        np.testing.assert_equal(by_python[name], long[name], name)


@pytest.mark.skipif(not native.AVAILABLE, reason="the extension is not built")
def test_python_hands_over_where_there_is_no_room(
    observe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    handed: list[int] = []
    way, seal = Pump.short_way, Journal.seal

    def counted(journal: Journal, kind: Any, step: int, *rest: Any) -> None:
        handed.append(step)
        seal(journal, kind, step, *rest)

    monkeypatch.setattr(Pump, "short_way", lambda pump, size: way(pump, size)._replace(room=0))
    monkeypatch.setattr(Journal, "seal", counted)
    record = _recorded(observe, _plain)
    assert handed == record["step"] == list(range(24))


@pytest.mark.skipif(not native.AVAILABLE, reason="the extension is not built")
def test_nothing_is_queued_for_a_thread_that_is_gone(observe: Callable[..., Any]) -> None:
    observation = observe()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for step in range(8):
        _plain(model, optimizer, step)
    pump = observation.session.writer()._pump
    assert pump.flush()
    pump.stopped = True
    for step in range(8, 16):
        _plain(model, optimizer, step)
    pump.stopped = False
    assert observation.run().steps["step"].tolist() == list(range(8))


@pytest.mark.skipif(not native.AVAILABLE, reason="the extension is not built")
def test_the_hook_does_nothing_at_the_step_of_another(observe: Callable[..., Any]) -> None:
    observe()
    model = nn.Linear(3, 2)
    weights = list(model.parameters())
    optimizer, other = (torch.optim.SGD(weights, lr=0.01, momentum=0.9) for _ in range(2))
    for step in range(4):
        _plain(model, optimizer, step)
    other.state["any"] = 1  # without a state its step could be one that only makes it
    for hook in optimizer._optimizer_step_pre_hooks.values():
        hook(other, (other,), {})
    assert optimizer._steadygrad.steps == 4


def _hears(optimizer: Any, while_hearing: Callable[[], object]) -> None:
    """From now on something is done while our Python asks for the loss of a step."""
    losses = optimizer._steadygrad._engine.losses
    heard = losses.heard
    losses.heard = lambda: (while_hearing(), heard())[1]


def test_a_rate_that_is_replaced_while_a_step_is_recorded(observe: Callable[..., Any]) -> None:
    model = nn.Linear(3, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    observation = observe()
    kept: list[float] = []

    def another() -> None:  # as another thread may do, which then uses the old one's memory again
        optimizer.param_groups[0]["lr"] *= 0.5
        kept.extend(float(number) for number in range(8))

    for step in range(24):
        _plain(model, optimizer, step)
        if step == 20:
            _hears(optimizer, another)
    assert observation.run().steps["lr"].tolist() == [0.5] * 21 + [0.25, 0.125, 0.0625]


@pytest.mark.parametrize("where", ["loss", "sample"])
@pytest.mark.parametrize("by_c", [True, False])
def test_a_step_of_another_thread_in_the_middle_of_one_has_a_number_of_its_own(
    by_c: bool, where: str, observe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Linear(3, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    observation = observe()
    if not by_c:
        monkeypatch.setattr(Engine, "terms", lambda engine: None)
    main = threading.current_thread()

    def between(*_: object) -> None:
        if threading.current_thread() is main:
            thread = threading.Thread(target=optimizer.step)
            thread.start()
            thread.join()

    for step in range(20):
        _plain(model, optimizer, step)
        if step == 17 and where == "loss":
            _hears(optimizer, between)
        elif step == 17:
            sampler: Any = optimizer._steadygrad._engine.journal.recorder.sampler
            sampler.idle_before = 0
            monkeypatch.setattr(sampler, "before_update", between)
    numbers = sorted(observation.run().steps["step"].tolist())
    assert len(numbers) > 20
    assert numbers == list(range(len(numbers)))


class Late(Exception):
    """What a script's handler raises."""


@pytest.mark.parametrize("where", ["step", "step in Python", "clip call"])
def test_what_a_signal_handler_raises_in_the_middle_of_ours_is_the_script_s(
    where: str, observe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Linear(3, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    observation = observe()

    def handler(*_: object) -> None:
        raise Late

    def signalled(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)

    if where == "step in Python":
        monkeypatch.setattr(Engine, "terms", lambda engine: None)
    before = signal.signal(signal.SIGINT, handler)
    try:
        for step in range(20):
            _clipping(model, optimizer, step) if where == "clip call" else _plain(
                model, optimizer, step
            )
            if step == 17 and where == "clip call":
                monkeypatch.setattr(ClipLog, "before", signalled)
            elif step == 17:
                _hears(optimizer, signalled)
    except Late:
        assert step == 18
    else:
        pytest.fail("the script's exception was kept from it")
    finally:
        signal.signal(signal.SIGINT, before)
    monkeypatch.undo()
    optimizer._steadygrad._engine.losses.heard = lambda: 0.0
    _plain(model, optimizer, step)
    assert len(observation.run().steps) == 19


def test_a_fault_below_c_is_told_with_whose_it_is(observe: Callable[..., Any]) -> None:
    model = nn.Linear(3, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    observation = observe()
    for step in range(20):
        _plain(model, optimizer, step)
        if step == 17:
            _hears(optimizer, lambda: 1 / 0)
    observation.session._conclude()
    (trouble,) = {re.sub(r"line \d+", "line 0", each) for each in observation.session.troubles}
    assert f"by an error in {os.path.basename(__file__)}, line 0: ZeroDivisionError" in trouble
    assert len(open_run(observation.session.path).steps) == 18


def test_one_optimizer_may_step_while_another_is_looked_for(
    observe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [nn.Linear(3, 4) for _ in range(2)]
    one, other = (torch.optim.SGD(model.parameters(), lr=0.01) for model in models)
    observation = observe()
    asked: list[int] = []

    def dead() -> None:
        asked.append(1)
        if len(asked) == 1:
            _plain(models[1], other, 0)

    monkeypatch.setattr(copies, "_met", type(copies._met)([dead] * 2))
    _plain(models[0], one, 0)
    assert len(observation.run().steps) == 2
