"""The gradient through time by the cells' equations, beside autograd on a loop of cells."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from steadygrad import diagnose, open_run
from steadygrad.torch import attach
from steadygrad.torch.record.through_time import ThroughTime

TIME, ROWS, FEATURES, HIDDEN = 7, 4, 3, 5
CELLS: dict[str, type[nn.RNNCellBase]] = {
    "RNN": nn.RNNCell, "GRU": nn.GRUCell, "LSTM": nn.LSTMCell,
}  # fmt: skip


def state_norms(layer: Any, inputs: torch.Tensor, loss_of: Any) -> list[float]:
    """The oracle: the layer as a loop of cells whose states keep their gradients, in float64."""
    more = {"nonlinearity": layer.nonlinearity} if layer.mode.startswith("RNN") else {}
    cell: Any = CELLS[type(layer).__name__](FEATURES, HIDDEN, bias=layer.bias, **more).double()
    own = {name.removesuffix("_l0"): value.double() for name, value in layer.state_dict().items()}
    cell.load_state_dict(own)
    zeros = torch.zeros(ROWS, HIDDEN, dtype=torch.float64)
    state: Any = (zeros, zeros.clone()) if layer.mode == "LSTM" else zeros
    states, outputs = [], []
    for step in inputs.double():
        state = cell(step, state)
        parts = state if isinstance(state, tuple) else (state,)
        for part in parts:
            part.retain_grad()
        states.append(parts)
        outputs.append(parts[0])
    loss_of(torch.stack(outputs), states[-1]).backward()
    return [float(torch.cat([s.grad for s in parts if s.grad is not None]).norm())
            for parts in states]  # fmt: skip


@pytest.mark.parametrize("kind", ["RNN", "relu", "GRU", "LSTM"])
@pytest.mark.parametrize("reads", ["all", "last"])
def test_it_is_what_autograd_gives_in_a_loop(kind: str, reads: str) -> None:
    torch.manual_seed(3)
    more = {"nonlinearity": "relu"} if kind == "relu" else {}
    layer: Any = getattr(nn, "RNN" if kind == "relu" else kind)(
        FEATURES, HIDDEN, batch_first=True, bias=reads == "all", **more
    )
    inputs, weights = torch.randn(ROWS, TIME, FEATURES), torch.randn(TIME, ROWS, HIDDEN)

    def loss_of(outputs: torch.Tensor, last: Any) -> torch.Tensor:
        if reads == "all":
            return (outputs * weights.to(outputs.dtype)).sum()
        return sum((part.square().sum() for part in last), torch.zeros(()))

    watch = ThroughTime()
    output, last = layer(inputs)
    watch.saw(layer, (inputs,), (output, last))
    parts = last if isinstance(last, tuple) else (last,)
    loss_of(output.transpose(0, 1), tuple(part[0] for part in parts)).backward()
    ((matrix, norms),) = watch.profiles()
    assert matrix is layer.weight_hh_l0
    wanted = state_norms(layer, inputs.transpose(0, 1), loss_of)
    # float32 in the layer and on the way back, a few roundings a step
    assert norms == pytest.approx(wanted, rel=50 * TIME * torch.finfo(torch.float32).eps)


def test_a_layer_that_nobody_can_measure_is_left_out() -> None:
    watch, inputs = ThroughTime(), torch.randn(TIME, ROWS, FEATURES)
    deep, plain = nn.GRU(FEATURES, HIDDEN, num_layers=2), nn.GRU(FEATURES, HIDDEN)
    output = deep(inputs)
    watch.saw(deep, (inputs,), output)
    output[0].sum().backward()
    with torch.no_grad():
        watch.saw(plain, (inputs,), plain(inputs))
    assert list(watch.profiles()) == []


def trained(path: Any, observed: bool) -> list[torch.Tensor]:
    """A GRU that forgets at once, and is asked for the first of 40 numbers."""
    torch.manual_seed(0)
    layer, head = nn.GRU(1, 8, batch_first=True), nn.Linear(8, 1)
    with torch.no_grad():
        layer.bias_hh_l0[8:16] = -4.0  # the update gate lets nothing stay
    model = nn.ModuleList([layer, head])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    steady = attach(optimizer, clip="none", model=model, run=path) if observed else None
    for _ in range(60):
        inputs = torch.randn(32, 40, 1)
        loss = (head(layer(inputs)[0][:, -1]).squeeze(1) - inputs[:, 0, 0]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        if steady is not None:
            steady.observe_loss(loss)
        optimizer.step()
    if steady is not None:
        steady.detach()
    return [p.detach().clone() for p in model.parameters()]


def test_a_gru_that_forgets_is_told_by_measurement_and_trained_as_without(tmp_path: Any) -> None:
    watched, plain = trained(tmp_path / "run.db", True), trained(None, False)
    assert all(torch.equal(a, b) for a, b in zip(watched, plain, strict=True))
    run = open_run(tmp_path / "run.db")
    events = [event for event in run.events if event.kind == "through_time"]
    assert [event.step for event in events][:4] == [0, 1, 2, 4]
    assert {len(event.data["norms"]) for event in events} == {40}
    first = diagnose(run)[0]
    assert first.id == "SG305"
    assert "Measured at step" in first.evidence[0]
    assert "bias[h:2 * h]" in first.fixes[0]
