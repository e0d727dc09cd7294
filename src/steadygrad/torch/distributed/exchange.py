"""Figures of whole tensors from those of each rank's pieces: one collective a mesh.

Every rank sends the figures of all its tensors and receives those of all ranks, and joins them in
the same order, so that all come to the same bits and to the same decision. Many ranks add up
instead (`reducing`). Finiteness is told
afterwards: what is broken on one rank is broken for all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import array_api_compat.torch as torch_namespace
import numpy as np
import torch

from steadygrad.errors import ReplicasDifferWarning
from steadygrad.kernels import Read
from steadygrad.policies.in_numpy import NUMPY
from steadygrad.policies.wide import concat
from steadygrad.runlog.sampled import due
from steadygrad.stats import combine_norms, combine_pieces
from steadygrad.torch.distributed.layout import UNKNOWN, Exchange, Layout
from steadygrad.torch.distributed.reducing import reduced, summed
from steadygrad.torch.internals.warn import warn_user

CHECK_EVERY = 64
"""Exchanges between two comparisons of what ranks should hold alike."""
MOST_GATHERED = 64
"""Ranks up to which one gather is quicker than two sums; see `reducing`."""
_GATHER: Any = getattr(
    torch.distributed,
    "all_gather_single",
    getattr(torch.distributed, "all_gather_into_tensor", None),
)
TOLERANCE = 1e-5
"""Relative difference of norms from which replicas are told to differ."""

Tell = Callable[[str], None]
"""What is done with a sentence on ranks that disagree."""


def warn_of_replicas(sentence: str) -> None:
    """Warn at the user's own line."""
    warn_user(sentence, ReplicasDifferWarning)


def joined(figures: Read, layout: Layout, norm_type: float, tell: Tell = warn_of_replicas) -> Read:
    """Exchange figures with the other ranks.

    Args:
        figures: of this rank's pieces, one column a tensor of the layout.
        layout: of the tensors.
        norm_type: p of the norms.
        tell: given a sentence where ranks differ in what they should hold alike.

    Returns:
        Figures of the whole tensors, and the total norm over all ranks.
    """
    xp = torch_namespace if isinstance(figures.norms, torch.Tensor) else NUMPY
    rows = _stacked(xp, figures)
    own = _own(xp, rows, norm_type)
    checks = not layout.disagreed and due(layout.uses, CHECK_EVERY)
    layout.uses += 1
    apart: list[Any] = []
    elsewhere: Any = 0
    for exchange in layout.exchanges:
        mine = _columns(xp, rows, exchange, norm_type)
        if len(exchange.ranks) > MOST_GATHERED:
            whole = reduced(xp, mine, exchange, norm_type)
            rows[:, exchange.places.of(rows)] = whole[:, : len(exchange.places)]
            if len(exchange.apart):
                apart.append(whole[0, -1])
                elsewhere = elsewhere + whole[2, -1] - mine[2, -1]
            continue
        gathered = _all_gather(mine, exchange)  # [ranks, 4, columns]
        if len(exchange.places):
            rows[:, exchange.places.of(rows)] = _whole(xp, gathered, exchange, norm_type)
        if len(exchange.apart):
            theirs = gathered[:, :, -1]
            apart.append(combine_norms(xp, theirs[:, 0], norm_type))
            elsewhere = elsewhere + xp.sum(theirs[:, 2]) - mine[2, -1]
        if checks:
            _compare(gathered, exchange, layout, tell)
    total = _total(xp, rows[0], apart, layout, norm_type)
    return _figures(xp, rows, total, elsewhere)._replace(own=own)


def summed_over_pieces(values: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Sums over the whole tensors of what was summed over this rank's pieces.

    Args:
        values: one a tensor of the layout, ``[tensors]``.
        layout: of the tensors.
    """
    values = values.clone()
    for exchange in layout.exchanges:
        columns = values[exchange.places.of(values)]
        if len(exchange.ranks) > MOST_GATHERED:
            values[exchange.places.of(values)] = summed(torch_namespace, columns, exchange)
            continue
        gathered = _all_gather(columns[None], exchange)[:, 0]
        for split in exchange.splits:
            where = split.columns.of(gathered)
            columns[where] = gathered[split.owners.of(gathered)][:, where].sum(0)
        values[exchange.places.of(values)] = columns
    return values


def _stacked(xp: object, figures: Read) -> Any:
    if xp is np:
        return np.array(figures[:4], np.float64)
    return torch.stack([column.to(torch.float64) for column in figures[:4]])


def _own(xp: Any, rows: Any, norm_type: float) -> Any:
    """Norm, and number of NaN and inf elements, of what this rank holds."""
    norms = rows[0]
    norm = combine_norms(xp, norms, norm_type) if norms.shape[0] else xp.sum(norms)
    return xp.stack([xp.asarray(norm), xp.sum(rows[2])])


def _figures(xp: Any, rows: Any, total: Any, elsewhere: Any) -> Read:
    if xp is np:
        counts = rows[2:].astype(np.int64)
        return Read(rows[0], rows[1], counts[0], counts[1], total, elsewhere)
    return Read(rows[0], rows[1], rows[2].long(), rows[3].long(), total, elsewhere)


def _total(xp: Any, norms: Any, apart: list[Any], layout: Layout, norm_type: float) -> Any:
    """The norm of all tensors of all ranks as one vector."""
    if apart:
        norms = concat(xp, [norms[layout.shared.of(norms)], xp.stack(apart)])
    return combine_norms(xp, norms, norm_type) if norms.shape[0] else xp.sum(norms)


def _columns(xp: Any, rows: Any, exchange: Exchange, norm_type: float) -> Any:
    """What this rank sends: a column a tensor, and one for all tensors that it alone has."""
    columns = rows[:, exchange.places.of(rows)]
    if not len(exchange.apart):
        return columns
    own = rows[:, exchange.apart.of(rows)]
    norm = combine_norms(xp, own[0], norm_type)
    joint = xp.stack([norm, xp.max(own[1]), xp.sum(own[2]), xp.sum(own[3])])
    return concat(xp, [columns, joint[:, None]], axis=1)


def _all_gather(columns: Any, exchange: Exchange) -> Any:
    """The columns of every rank, ``[ranks, rows, columns]``, in the order of the group."""
    on_host = not isinstance(columns, torch.Tensor)
    mine = torch.from_numpy(np.ascontiguousarray(columns)) if on_host else columns.contiguous()
    home = mine.device
    if home.type == "cpu" and torch.distributed.get_backend(exchange.group) == "nccl":
        mine = mine.cuda()
    everyone = mine.new_empty((len(exchange.ranks) * mine.shape[0], mine.shape[1]))
    _GATHER(everyone, mine, group=exchange.group)
    everyone = everyone.view(len(exchange.ranks), *mine.shape).to(home)
    return everyone.numpy() if on_host else everyone


def _whole(xp: Any, gathered: Any, exchange: Exchange, norm_type: float) -> Any:
    """Figures of whole tensors, ``[4, columns]``."""
    count = len(exchange.places)
    pieces = gathered[:, :, :count]
    if len(exchange.splits) == 1:
        whole = _joined(xp, pieces[exchange.splits[0].owners.of(pieces)], norm_type)
    else:
        whole = xp.empty_like(pieces[0])
        for split in exchange.splits:
            columns = split.columns.of(pieces)
            own = pieces[split.owners.of(pieces)][:, :, columns]
            whole[:, columns] = _joined(xp, own, norm_type)
    # a copy that is broken on one rank only breaks the step for all
    broken = xp.max(pieces[:, 2], axis=0)
    hidden = (broken > 0) & (whole[2] == 0)
    whole[0] = xp.where(hidden, xp.sum(pieces[:, 0], axis=0) * 0 + float("nan"), whole[0])
    whole[2] = xp.where(hidden, broken, whole[2])
    return whole


def _joined(xp: Any, pieces: Any, norm_type: float) -> Any:
    """``[ranks, 4, tensors]`` joined over the ranks."""
    norms = combine_pieces(xp, pieces[:, 0], norm_type)
    counts = xp.sum(pieces[:, 2:], axis=0)
    return concat(xp, [norms[None], xp.max(pieces[:, 1], axis=0)[None], counts])


def _compare(gathered: Any, exchange: Exchange, layout: Layout, tell: Tell) -> None:
    """Compare what ranks should hold alike; a rank that differs is told once."""
    everyone = gathered.cpu().numpy() if isinstance(gathered, torch.Tensor) else gathered
    norms = everyone[:, 0, : len(exchange.places)]
    for split in exchange.splits:
        holders = np.flatnonzero(split.twins != UNKNOWN)
        own = norms[:, split.columns.of(norms)]
        here, first = own[holders], own[split.twins[holders]]
        with np.errstate(invalid="ignore"):
            differs = np.abs(here - first) > TOLERANCE * np.maximum(here, first)
        if differs.any():
            row, column = np.argwhere(differs)[0]
            layout.disagreed = True
            ranks = exchange.ranks[holders[row]], exchange.ranks[split.twins[holders[row]]]
            count = int(differs.any(axis=0).sum())
            tell(_sentence(ranks, count, here[row, column], first[row, column]))
            return


def _sentence(ranks: tuple[int, int], count: int, norm: float, first: float) -> str:
    other, rank = ranks
    return (
        f"rank {rank} and rank {other} should hold the same gradients, and {count} of them differ: "
        f"one has norm {first:.6g} on rank {rank} and {norm:.6g} on rank {other}, so the total "
        f"norm is that of rank {rank}'s gradients. Average gradients over the ranks before the "
        "step; or, where each rank has parameters of its own (experts, pipeline stages), type "
        "attach(..., process_group={'experts.*': group})"
    )
