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


def one_way(layer: Any, index: int, way: int, inputs: torch.Tensor) -> tuple[Any, torch.Tensor]:
    """The states of a loop of cells, as it reads, and its outputs in the order of time."""
    more = {"nonlinearity": layer.nonlinearity} if layer.mode.startswith("RNN") else {}
    cell: Any = CELLS[type(layer).__name__](
        inputs.shape[-1], HIDDEN, bias=layer.bias, **more
    ).double()
    suffix = f"_l{index}" + "_reverse" * way
    own = {name.removesuffix(suffix): value.double() for name, value in layer.state_dict().items()
           if name.endswith(suffix)}  # fmt: skip
    cell.load_state_dict(own)
    zeros = torch.zeros(inputs.shape[1], HIDDEN, dtype=torch.float64)
    state: Any = (zeros, zeros.clone()) if layer.mode == "LSTM" else zeros
    states = []
    for step in inputs.flip(0) if way else inputs:
        state = cell(step, state)
        parts = state if isinstance(state, tuple) else (state,)
        for part in parts:
            if part.requires_grad:
                part.retain_grad()
        states.append(parts)
    outputs = torch.stack([parts[0] for parts in states])
    return states, outputs.flip(0) if way else outputs


def state_norms(layer: Any, inputs: torch.Tensor, loss_of: Any) -> list[list[float]]:
    """The oracle: loops of cells whose states keep their gradients, in float64; the last layer's.

    One list for each direction, in the order in which it reads.
    """
    ways = range(2 if layer.bidirectional else 1)
    x, last = inputs.double(), []
    for index in range(layer.num_layers):
        told = [one_way(layer, index, way, x) for way in ways]
        x = torch.cat([outputs for _, outputs in told], dim=-1)
        last += [states[-1] for states, _ in told]
    ends = tuple(torch.stack(parts) for parts in zip(*last, strict=True))
    loss_of(x, ends).backward()
    return [
        [float(torch.cat([s.grad for s in parts if s.grad is not None]).norm()) for parts in states]
        for states, _ in told
    ]


@pytest.mark.parametrize("reads", ["all", "last"])
@pytest.mark.parametrize(
    ("kind", "layers", "ways"),
    [("RNN", 1, 1), ("relu", 1, 1), ("GRU", 1, 1), ("LSTM", 1, 1), ("RNN", 2, 2), ("GRU", 3, 1),
     ("GRU", 2, 2), ("LSTM", 2, 2)],
)  # fmt: skip
def test_it_is_what_autograd_gives_in_a_loop(kind: str, layers: int, ways: int, reads: str) -> None:
    torch.manual_seed(3)
    more = {"nonlinearity": "relu"} if kind == "relu" else {}
    layer: Any = getattr(nn, "RNN" if kind == "relu" else kind)(
        FEATURES, HIDDEN, layers, bidirectional=ways == 2, batch_first=True, bias=reads == "all",
        **more,
    )  # fmt: skip
    inputs, weights = torch.randn(ROWS, TIME, FEATURES), torch.randn(TIME, ROWS, ways * HIDDEN)

    def loss_of(outputs: torch.Tensor, last: Any) -> torch.Tensor:
        if reads == "all":
            return (outputs * weights.to(outputs.dtype)).sum()
        return sum((part.square().sum() for part in last), torch.zeros(()))

    watch = ThroughTime()
    output, last = layer(inputs)
    watch.saw(layer, (inputs,), (output, last))
    loss_of(output.transpose(0, 1), last if isinstance(last, tuple) else (last,)).backward()
    told = list(watch.profiles())
    names = [f"weight_hh_l{layers - 1}" + "_reverse" * way for way in range(ways)]
    assert all(m is getattr(layer, n) for (m, _), n in zip(told, names, strict=True))
    wanted = state_norms(layer, inputs.transpose(0, 1), loss_of)
    # float32 in the layer and on the way back, a few roundings a step
    rel = 50 * layers * TIME * torch.finfo(torch.float32).eps
    assert [norms for _, norms in told] == [pytest.approx(norms, rel=rel) for norms in wanted]


@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
def test_of_packed_sequences_the_longest_are_measured(kind: str) -> None:
    torch.manual_seed(4)
    layer: Any = getattr(nn, kind)(FEATURES, HIDDEN, bidirectional=True)
    inputs, lengths = torch.randn(TIME, ROWS, FEATURES), torch.tensor([3, TIME, 5, TIME])
    weights = torch.randn(TIME, ROWS, 2 * HIDDEN)
    packed = nn.utils.rnn.pack_padded_sequence(inputs, lengths, enforce_sorted=False)
    watch = ThroughTime()
    output, last = layer(packed)
    watch.saw(layer, (packed,), (output, last))
    (nn.utils.rnn.pad_packed_sequence(output)[0] * weights).sum().backward()
    longest = [1, 3]

    def loss_of(outputs: torch.Tensor, last: Any) -> torch.Tensor:
        return (outputs * weights[:, longest].double()).sum()

    wanted = state_norms(layer, inputs[:, longest], loss_of)
    rel = 50 * TIME * torch.finfo(torch.float32).eps
    told = [norms for _, norms in watch.profiles()]
    assert told == [pytest.approx(norms, rel=rel) for norms in wanted]


def test_a_layer_that_nobody_can_measure_is_left_out() -> None:
    watch, inputs = ThroughTime(), torch.randn(TIME, ROWS, FEATURES)
    deep, plain = nn.GRU(FEATURES, HIDDEN, num_layers=2, dropout=0.5), nn.GRU(FEATURES, HIDDEN)
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
