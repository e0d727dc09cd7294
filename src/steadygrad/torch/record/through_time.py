"""The gradient through time, measured: the norm of dLoss/d(state) at each time step of a layer.

A fused RNN, GRU or LSTM hands out its states and no gradient between them. What reaches the last
states is noted by hooks on the layer's outputs; from there the chain rule is carried back by the
cell's own equations on detached copies of a few rows. No autograd is used, so that nothing of the
script's graph, its patches or its random numbers is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch.nn.utils.rnn import PackedSequence

from steadygrad.torch.internals.modes import unseen

POSITIONS = 64
"""Time steps of which the norm is kept."""
ROWS = 16
"""Sequences of a batch that stand for it; of a packed one, of the longest."""
MOST_STEPS = 1024
"""Time steps beyond which a layer is left out: each is a small product on its way back."""
MOST_LAYERS = 4


@dataclass
class Pass:
    """One forward pass of a recurrent layer in one direction, and what flows back into it.

    Time runs as the layer reads: from the last time step to the first in the other direction.

    Attributes:
        module: an RNN, GRU or LSTM.
        layer: the layer that is measured, its last.
        backwards: whether it reads from the last time step to the first.
        inputs: ``[time, rows, features]``; None where the cell's equations do not need them.
        states: h before each time step and after the last, ``[time + 1, rows, hidden]``.
        cell: c before the first time step, ``[rows, hidden]``; LSTM alone.
        into_outputs: dLoss/d(output), ``[time, rows, hidden]``, once backward has run.
        into_last: dLoss/dh_n and, of an LSTM, dLoss/dc_n, ``[rows, hidden]``.
    """

    module: torch.nn.RNNBase
    layer: int
    backwards: bool
    inputs: torch.Tensor | None
    states: torch.Tensor
    cell: torch.Tensor | None
    into_outputs: torch.Tensor | None = None
    into_last: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def matrix(self) -> torch.Tensor:
        """The recurrent matrix of the layer."""
        weight: torch.Tensor = getattr(self.module, f"weight_hh{self._suffix}")
        return weight

    @property
    def _suffix(self) -> str:
        return f"_l{self.layer}" + "_reverse" * self.backwards

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
        return _weight(self.module, f"{name}{self._suffix}", self.states.device)


def _weight(module: torch.nn.RNNBase, name: str, device: torch.device) -> torch.Tensor:
    parameter = getattr(module, name, None)
    if parameter is None:
        return torch.zeros(1, device=device)
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
        self._passes: dict[int, list[Pass]] = {}

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
        rows = _rows_of(module, args[0], result[0])
        if rows is not None and _measurable(module, rows):
            self._passes[id(module)] = list(_noted(module, rows, args, *result))

    def profiles(self) -> Iterator[tuple[torch.Tensor, list[float]]]:
        """Each recurrent matrix and the norm at each time step, of passes that backward reached."""
        for seen in chain.from_iterable(self._passes.values()):
            norms = seen.norms()
            if norms is not None:
                yield seen.matrix, [float(v) for v in norms.tolist()]


class _Rows(NamedTuple):
    """The sequences of a batch that stand for it.

    Attributes:
        data: the layer's output, as it returned it or as it is packed.
        of_sequence: their part of a tensor like the output, ``[time, rows, features]``; a copy.
        of_last: their part of a tensor like h_n, ``[layers, rows, hidden]``; a copy.
        length: time steps.
    """

    data: torch.Tensor
    of_sequence: Callable[[torch.Tensor], torch.Tensor]
    of_last: Callable[[torch.Tensor], torch.Tensor]
    length: int


def _rows_of(module: torch.nn.RNNBase, inputs: object, output: object) -> _Rows | None:
    packed = isinstance(inputs, PackedSequence) and isinstance(output, PackedSequence)
    if packed:
        return _longest(output)  # type: ignore[arg-type]
    if not isinstance(inputs, torch.Tensor) or not isinstance(output, torch.Tensor):
        return None
    single = output.dim() == 2
    swapped = module.batch_first and not single

    def of_sequence(value: torch.Tensor) -> torch.Tensor:
        value = value.detach()
        return thinned(value.unsqueeze(-2) if single else value, time_last=swapped)

    def of_last(value: torch.Tensor) -> torch.Tensor:
        value = value.detach()
        return thinned(value.unsqueeze(-2) if single else value, time_last=False)

    def thinned(value: torch.Tensor, time_last: bool) -> torch.Tensor:
        value = value.transpose(0, 1) if time_last else value
        return value[..., :: -(-value.shape[-2] // ROWS), :].float().clone()

    return _Rows(output, of_sequence, of_last, output.shape[1 if swapped else 0])


def _longest(output: PackedSequence) -> _Rows:
    """The longest sequences of a packed batch: they stand first at each of its time steps."""
    sizes = output.batch_sizes
    count = min(int(sizes[-1]), ROWS)
    places = (sizes.cumsum(0) - sizes)[:, None] + torch.arange(count)
    places = places.to(output.data.device)
    order = output.sorted_indices

    def of_last(value: torch.Tensor) -> torch.Tensor:
        chosen = value[:, :count] if order is None else value[:, order[:count]]
        return chosen.detach().float().clone()

    return _Rows(output.data, lambda v: v.detach()[places].float(), of_last, len(sizes))


def _measurable(module: torch.nn.RNNBase, rows: _Rows) -> bool:
    inside = module.num_layers > 1 and not module.mode.startswith("RNN")
    dropped = inside and module.dropout > 0 and module.training  # by a mask that nobody keeps
    grows = rows.data.requires_grad and not getattr(module, "proj_size", 0)
    return bool(grows and not dropped and 2 < rows.length <= MOST_STEPS)


def _noted(
    module: torch.nn.RNNBase, rows: _Rows, args: Sequence[Any], output: Any, last: Any
) -> Iterator[Pass]:
    """The last layer of a module, in each direction."""
    lstm = module.mode == "LSTM"
    initial = args[1] if len(args) > 1 else None
    first = initial if initial is None or isinstance(initial, tuple) else (initial,)
    states = rows.of_sequence(rows.data)
    ways, top = (2 if module.bidirectional else 1), module.num_layers - 1
    zeros = torch.zeros(top * ways + ways, *states.shape[1:2], module.hidden_size).to(states)
    starts = [zeros if first is None else rows.of_last(part) for part in (first or (None,) * 2)]
    inputs = None
    if not module.mode.startswith("RNN"):
        raw = args[0].data if isinstance(args[0], PackedSequence) else args[0]
        inputs = _through_lower_layers(module, rows.of_sequence(raw), starts)
    for way in range(ways):
        yield _one_way(module, rows, bool(way), inputs, states, starts, last if lstm else (last,))


def _one_way(
    module: torch.nn.RNNBase,
    rows: _Rows,
    backwards: bool,
    inputs: torch.Tensor | None,
    states: torch.Tensor,
    starts: Sequence[torch.Tensor],
    last: Sequence[torch.Tensor],
) -> Pass:
    width, top = module.hidden_size, module.num_layers - 1
    place = top * (2 if module.bidirectional else 1) + backwards  # in h_n
    part = slice(width, 2 * width) if backwards else slice(0, width)

    def as_read(value: torch.Tensor) -> torch.Tensor:
        return value.flip(0) if backwards else value

    own = torch.cat([starts[0][place, None], as_read(states[..., part])])
    cell = starts[1][place] if module.mode == "LSTM" else None
    seen_inputs = None if inputs is None else as_read(inputs)
    seen = Pass(module, top, backwards, seen_inputs, own, cell)

    def into_outputs(grad: torch.Tensor) -> None:
        seen.into_outputs = as_read(rows.of_sequence(grad)[..., part])

    rows.data.register_hook(unseen(into_outputs))  # type: ignore[no-untyped-call]
    for name, value in zip("hc", last, strict=False):
        if value.requires_grad:
            keeper = _keeper(seen, name, lambda g: rows.of_last(g)[place])
            value.register_hook(unseen(keeper))  # type: ignore[no-untyped-call]
    return seen


def _keeper(
    seen: Pass, name: str, part: Callable[[torch.Tensor], torch.Tensor]
) -> Callable[[torch.Tensor], None]:
    def keep(grad: torch.Tensor) -> None:
        seen.into_last[name] = part(grad)

    return keep


def _through_lower_layers(
    module: torch.nn.RNNBase, inputs: torch.Tensor, starts: Sequence[torch.Tensor]
) -> torch.Tensor:
    """What the last layer is given: each layer below it by its cell's equations."""
    ways = 2 if module.bidirectional else 1
    for layer in range(module.num_layers - 1):
        outputs = []
        for way in range(ways):
            place, suffix = layer * ways + way, f"_l{layer}" + "_reverse" * way
            own = [start[place] for start in starts]
            read = inputs.flip(0) if way else inputs
            written = _forwards(module, suffix, read, own)
            outputs.append(written.flip(0) if way else written)
        inputs = torch.cat(outputs, dim=-1)
    return inputs


def _forwards(
    module: torch.nn.RNNBase, suffix: str, inputs: torch.Tensor, starts: Sequence[torch.Tensor]
) -> torch.Tensor:
    """The outputs of one layer of a GRU or LSTM, ``[time, rows, hidden]``."""
    weight, bias, back, back_bias = (
        _weight(module, f"{name}{suffix}", inputs.device)
        for name in ("weight_ih", "bias_ih", "weight_hh", "bias_hh")
    )
    of_inputs, state, outputs = inputs @ weight.T + bias, starts[0], []
    cell = starts[-1]
    for step in of_inputs:
        of_state = state @ back.T + back_bias
        if module.mode == "GRU":
            (r, z, n), (hr, hz, hn) = step.chunk(3, dim=-1), of_state.chunk(3, dim=-1)
            update = torch.sigmoid(z + hz)
            new = torch.tanh(n + torch.sigmoid(r + hr) * hn)
            state = (1 - update) * new + update * state
        else:
            enter, forget, new, leave = (step + of_state).chunk(4, dim=-1)
            cell = forget.sigmoid() * cell + enter.sigmoid() * new.tanh()
            state = leave.sigmoid() * cell.tanh()
        outputs.append(state)
    return torch.stack(outputs)
