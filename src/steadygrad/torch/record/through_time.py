"""The gradient through time, measured: the norm of dLoss/d(state) at each time step of a layer.

A fused RNN, GRU or LSTM hands out its states and no gradient between them. What reaches the last
states is noted by hooks on the layer's outputs; from there the chain rule is carried back by the
cell's own equations on detached copies of a few rows. No autograd is used, so that nothing of the
script's graph, its patches or its random numbers is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

POSITIONS = 64
"""Time steps of which the norm is kept."""
ROWS = 16
"""Sequences of a batch that stand for it."""
MOST_STEPS = 1024
"""Time steps beyond which a layer is left out: each is a small product on its way back."""
MOST_LAYERS = 4


@dataclass
class Pass:
    """One forward pass of a recurrent layer, and what flows back into it.

    Attributes:
        module: an RNN, GRU or LSTM.
        layer: the layer that is measured, its last.
        inputs: ``[time, rows, features]``; None where the cell's equations do not need them.
        states: h before each time step and after the last, ``[time + 1, rows, hidden]``.
        cell: c before the first time step, ``[rows, hidden]``; LSTM alone.
        into_outputs: dLoss/d(output), ``[time, rows, hidden]``, once backward has run.
        into_last: dLoss/dh_n and, of an LSTM, dLoss/dc_n, ``[rows, hidden]``.
    """

    module: torch.nn.RNNBase
    layer: int
    inputs: torch.Tensor | None
    states: torch.Tensor
    cell: torch.Tensor | None
    into_outputs: torch.Tensor | None = None
    into_last: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def matrix(self) -> torch.Tensor:
        """The recurrent matrix of the layer."""
        weight: torch.Tensor = getattr(self.module, f"weight_hh_l{self.layer}")
        return weight

    def norms(self) -> torch.Tensor | None:
        """The norm of dLoss/d(state) after each time step, ``[time]``; None before backward.

        Of an LSTM the state is h and c together.
        """
        if self.into_outputs is None and not self.into_last:
            return None
        with torch.no_grad():
            squares = [s.double().square().sum() for s in self._backwards()]
        return torch.stack(squares[::-1]).sqrt()

    def _backwards(self) -> Iterator[torch.Tensor]:
        """dLoss/d(state) from the last time step to the first."""
        equations = {"GRU": _gru, "LSTM": _lstm}.get(self.module.mode, _rnn)
        return equations(self)

    def entering(self, step: int) -> torch.Tensor:
        """What the loss sends to the state of a time step directly, from the outputs."""
        if self.into_outputs is None:
            return torch.zeros_like(self.states[0])
        return self.into_outputs[step].float()

    def weight(self, name: str) -> torch.Tensor:
        """A weight of the layer, in float32; zeros for a bias that it does not have."""
        parameter = getattr(self.module, f"{name}_l{self.layer}", None)
        if parameter is None:
            return torch.zeros(1, device=self.states.device)
        return parameter.detach().float()  # type: ignore[no-any-return]


def _rnn(seen: Pass) -> Iterator[torch.Tensor]:
    matrix, relu = seen.weight("weight_hh"), seen.module.mode == "RNN_RELU"
    back = seen.into_last.get("h", torch.zeros_like(seen.states[0])).float()
    for step in reversed(range(len(seen.states) - 1)):
        back = back + seen.entering(step)
        yield back
        state = seen.states[step + 1]
        back = (back * ((state > 0) if relu else 1 - state.square())) @ matrix


def _gates(seen: Pass) -> tuple[torch.Tensor, torch.Tensor]:
    """The parts of all gates that inputs and states bring, ``[time, rows, gates * hidden]``."""
    assert seen.inputs is not None
    of_inputs = seen.inputs @ seen.weight("weight_ih").T + seen.weight("bias_ih")
    of_states = seen.states[:-1] @ seen.weight("weight_hh").T + seen.weight("bias_hh")
    return of_inputs, of_states


def _gru(seen: Pass) -> Iterator[torch.Tensor]:
    of_inputs, of_states = (part.chunk(3, dim=-1) for part in _gates(seen))
    reset = torch.sigmoid(of_inputs[0] + of_states[0])
    update = torch.sigmoid(of_inputs[1] + of_states[1])
    new = torch.tanh(of_inputs[2] + reset * of_states[2])
    matrix = seen.weight("weight_hh")
    back = seen.into_last.get("h", torch.zeros_like(seen.states[0])).float()
    for t in reversed(range(len(seen.states) - 1)):
        back = back + seen.entering(t)
        yield back
        into_new = back * (1 - update[t]) * (1 - new[t].square())
        into_update = back * (seen.states[t] - new[t]) * update[t] * (1 - update[t])
        into_reset = into_new * of_states[2][t] * reset[t] * (1 - reset[t])
        gates = torch.cat([into_reset, into_update, into_new * reset[t]], dim=-1)
        back = back * update[t] + gates @ matrix


def _lstm(seen: Pass) -> Iterator[torch.Tensor]:
    of_inputs, of_states = _gates(seen)
    enter, forget, new, leave = (of_inputs + of_states).chunk(4, dim=-1)
    enter, forget, leave, new = enter.sigmoid(), forget.sigmoid(), leave.sigmoid(), new.tanh()
    assert seen.cell is not None
    cells = [seen.cell]
    for t in range(len(new)):
        cells.append(forget[t] * cells[-1] + enter[t] * new[t])
    matrix = seen.weight("weight_hh")
    back = seen.into_last.get("h", torch.zeros_like(seen.states[0])).float()
    back_cell = seen.into_last.get("c", torch.zeros_like(seen.states[0])).float()
    for t in reversed(range(len(new))):
        back = back + seen.entering(t)
        bent = cells[t + 1].tanh()
        whole = back_cell + back * leave[t] * (1 - bent.square())
        yield torch.stack([back, whole])
        gates = torch.cat(
            [
                whole * new[t] * enter[t] * (1 - enter[t]),
                whole * cells[t] * forget[t] * (1 - forget[t]),
                whole * enter[t] * (1 - new[t].square()),
                back * bent * leave[t] * (1 - leave[t]),
            ],
            dim=-1,
        )
        back, back_cell = gates @ matrix, whole * forget[t]


class ThroughTime:
    """Notes recurrent layers in a forward pass, and tells the gradients through their time steps.

    Example:
        >>> layer, watch = torch.nn.RNN(2, 4), ThroughTime()
        >>> inputs = torch.zeros(5, 3, 2)
        >>> output = layer(inputs)
        >>> watch.saw(layer, (inputs,), output)
        >>> output[0][-1].sum().backward()
        >>> [(name is layer.weight_hh_l0, len(norms)) for name, norms in watch.profiles()]
        [(True, 5)]
    """

    def __init__(self) -> None:
        self._passes: dict[int, Pass] = {}

    def clear(self) -> None:
        """Forget what was seen."""
        self._passes = {}

    def saw(self, module: torch.nn.Module, args: Sequence[object], result: object) -> None:
        """A layer ran.

        Args:
            module: any module; other than RNN, GRU and LSTM are left out, and so are layers whose
                last layer's inputs nobody can see.
            args: what it was called with.
            result: what it returned.
        """
        if not isinstance(module, torch.nn.RNNBase) or id(module) in self._passes:
            return
        if len(self._passes) >= MOST_LAYERS or not isinstance(result, tuple) or not args:
            return
        if _measurable(module, args[0], result[0]):
            self._passes[id(module)] = _noted(module, args, *result)

    def profiles(self) -> Iterator[tuple[torch.Tensor, list[float]]]:
        """Each recurrent matrix and the norm at each time step, of passes that backward reached."""
        for seen in self._passes.values():
            norms = seen.norms()
            if norms is not None:
                yield seen.matrix, [float(v) for v in norms.tolist()]


def _measurable(module: torch.nn.RNNBase, inputs: object, output: object) -> bool:
    if not isinstance(inputs, torch.Tensor) or not isinstance(output, torch.Tensor):
        return False  # packed sequences are of different lengths
    plain = module.mode.startswith("RNN") or module.num_layers == 1
    time_first = not module.batch_first or inputs.dim() == 2
    length = output.shape[0 if time_first else 1]
    grows = output.requires_grad and not getattr(module, "proj_size", 0)
    return bool(plain and grows and 2 < length <= MOST_STEPS)


def _noted(module: torch.nn.RNNBase, args: Sequence[Any], output: torch.Tensor, last: Any) -> Pass:
    width, top = module.hidden_size, module.num_layers - 1
    forward = top * (2 if module.bidirectional else 1)  # place of this layer in h_n

    def rows(value: torch.Tensor, time: bool) -> torch.Tensor:
        """``[time, rows, ...]``, or ``[rows, ...]``: a few rows, a copy of their own."""
        value = value.detach()
        if output.dim() == 2:
            value = value.unsqueeze(-2)
        elif time and module.batch_first:
            value = value.transpose(0, 1)
        stride = -(-value.shape[-2] // ROWS)
        return value[..., ::stride, :].float().clone()

    states = rows(output, True)[..., :width]
    initial = args[1] if len(args) > 1 else None
    first = initial if initial is None or isinstance(initial, tuple) else (initial,)
    start = torch.zeros_like(states[:1]) if first is None else rows(first[0], False)[forward, None]
    lstm = module.mode == "LSTM"
    cell = None
    if lstm:
        cell = torch.zeros_like(states[0]) if first is None else rows(first[1], False)[forward]
    inputs = None if module.mode.startswith("RNN") else rows(args[0], True)
    seen = Pass(module, top, inputs, torch.cat([start, states]), cell)

    def into_outputs(grad: torch.Tensor) -> None:
        seen.into_outputs = rows(grad, True)[..., :width]

    output.register_hook(into_outputs)  # type: ignore[no-untyped-call]
    for name, value in zip("hc", last if lstm else (last,), strict=False):
        if value.requires_grad:
            value.register_hook(_keeper(seen, name, lambda g: rows(g, False)[forward]))
    return seen


def _keeper(
    seen: Pass, name: str, part: Callable[[torch.Tensor], torch.Tensor]
) -> Callable[[torch.Tensor], None]:
    def keep(grad: torch.Tensor) -> None:
        seen.into_last[name] = part(grad)

    return keep
