"""Which ranks hold which piece of which tensor, worked out once for a list of tensors.

The answer is two index tables an exchange, so that a step costs array operations however many
tensors there are. Pieces that several ranks hold alike are counted once, at the first rank that
holds them, which is the same one for every rank: all come to the same bits.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from steadygrad.errors import UsageError
from steadygrad.torch.gradients.pieces import dtensor_class

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

Ranks = NDArray[np.int64]
"""Global ranks, shaped as a mesh."""

UNKNOWN = -1
"""In `Split.twins`: whether this rank holds the same piece as another is not known."""
_MOST_LAYOUTS = 16
_SPEC = attrgetter("_spec")


@dataclass(frozen=True, eq=False)
class Spread:
    """What the type of a tensor does not tell of where its pieces are.

    Attributes:
        pieces: place of a tensor to the group whose ranks each hold a piece of it.
        apart: place of a tensor to the group whose ranks each hold another tensor there.
        params: all parameters; one without a gradient here may have one on another rank.
        tell: given a sentence where ranks differ in what they should hold alike; None warns.
    """

    pieces: dict[int, ProcessGroup] = field(default_factory=dict)
    apart: dict[int, ProcessGroup] = field(default_factory=dict)
    params: tuple[torch.Tensor, ...] = ()
    tell: Callable[[str], None] | None = None


NOWHERE = Spread()
"""Nothing beyond what the tensors tell."""


@dataclass(frozen=True, eq=False)
class RankMesh:
    """A mesh of ranks.

    Attributes:
        ranks: global ranks, shaped as the mesh.
        names: of its dimensions; none where they have no names.
    """

    ranks: Ranks
    names: tuple[str, ...] = ()

    @functools.cached_property
    def members(self) -> frozenset[int]:
        """Its ranks."""
        return frozenset(self.ranks.ravel().tolist())


class Index:
    """Places in an axis, as its array library indexes fastest.

    Args:
        places: in order.
        size: of the axis.
    """

    def __init__(self, places: Sequence[int], size: int) -> None:
        self._all = list(places) == list(range(size))
        self._host = np.array(places, np.int64)
        self._on: dict[torch.device, torch.Tensor] = {}

    def __len__(self) -> int:
        return len(self._host)

    @property
    def places(self) -> list[int]:
        """The places, in order."""
        return [int(place) for place in self._host]

    def of(self, like: object) -> Any:
        """What to index an array with that lives where this one does."""
        if self._all:
            return slice(None)
        if not isinstance(like, torch.Tensor):
            return self._host
        if like.device not in self._on:  # copied once: a copy a step would stop the host
            self._on[like.device] = torch.from_numpy(self._host).to(like.device)
        return self._on[like.device]


@dataclass(frozen=True, eq=False)
class Split:
    """Tensors that are split over ranks in the same way.

    Attributes:
        columns: theirs, among the columns of the exchange.
        owners: the ranks' rows that together make up the whole.
        twins: for each row, the first one that holds the same piece, ``[ranks]``.
    """

    columns: Index
    owners: Index
    twins: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Exchange:
    """One collective.

    Attributes:
        group: its process group.
        ranks: global ranks, in the order of the group.
        places: tensors whose figures are joined, one column each.
        splits: how.
        apart: places of tensors of which every rank of the group has others: one more column.
    """

    group: ProcessGroup
    ranks: tuple[int, ...]
    places: Index
    splits: tuple[Split, ...]
    apart: Index

    @functools.cached_property
    def counted(self) -> Index:
        """Columns in which this rank's piece counts: no other rank's copy of it does."""
        row = self.ranks.index(torch.distributed.get_rank())
        count = len(self.places) + bool(len(self.apart))
        own = [split for split in self.splits if row in split.owners.places]
        columns = [column for split in own for column in split.columns.places]
        return Index(sorted([*columns, *range(len(self.places), count)]), count)


@dataclass(eq=False)
class Layout:
    """How a list of tensors is laid out.

    Attributes:
        exchanges: the collectives that make figures whole, in order.
        partial: places of DTensors whose sum over ranks is pending.
        shared: places of the tensors that no rank has for itself.
        uses: how often figures were exchanged.
        disagreed: a difference between ranks was told already.
    """

    exchanges: tuple[Exchange, ...]
    partial: tuple[int, ...]
    shared: Index
    uses: int = 0
    disagreed: bool = False


def layout_of(tensors: Sequence[torch.Tensor], spread: Spread = NOWHERE) -> Layout:
    """How these tensors are laid out over ranks.

    Args:
        tensors: the same ones in the same order on every rank.
        spread: what their types do not tell.

    Returns:
        The layout; the same object for tensors laid out as before.

    Raises:
        UsageError: a placement that is not understood.
    """
    specs = _specs(tensors)
    key = (id(spread), *map(id, specs))
    cached = _recent.get(key)
    if cached is None:
        slow_key = (id(spread), *(s and (id(s.mesh), s.placements) for s in specs))
        cached = _layouts.get(slow_key)
        if cached is None:
            cached = _layouts[slow_key] = (_lay_out(specs, spread), [spread, *specs])
        _recent[key] = (cached[0], [spread, *specs])  # held, so that no id is used again
        _trim(_recent)
        _trim(_layouts)
    return cached[0]


_Cache = OrderedDict[tuple[Any, ...], tuple[Layout, list[Any]]]
_recent: _Cache = OrderedDict()
_layouts: _Cache = OrderedDict()


def _trim(cache: _Cache) -> None:
    while len(cache) > _MOST_LAYOUTS:
        cache.popitem(last=False)


def _specs(tensors: Sequence[object]) -> list[Any]:
    kind = dtensor_class()
    kinds = set(map(type, tensors))
    if kind is not None and all(issubclass(each, kind) for each in kinds):
        return list(map(_SPEC, tensors))
    return [_SPEC(t) if kind is not None and isinstance(t, kind) else None for t in tensors]


# -- working it out ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _TensorPlace:
    """One tensor: over which grid it is laid out, and which dimensions of that split it."""

    grid: RankMesh
    split: tuple[int, ...]
    mesh: DeviceMesh | None = None
    group: ProcessGroup | None = None


def _lay_out(specs: list[Any], spread: Spread) -> Layout:
    places: dict[int, _TensorPlace] = {}
    partial: list[int] = []
    for index, spec in enumerate(specs):
        if spec is not None:
            split = _split_dimensions(spec.placements)
            places[index] = _TensorPlace(_grid_of(spec.mesh), split, mesh=spec.mesh)
            if any(p.is_partial() for p in spec.placements):
                partial.append(index)
        elif index in spread.pieces:
            group = spread.pieces[index]
            places[index] = _TensorPlace(_grid_of_group(group), (0,), group=group)
    shared = [i for i in range(len(specs)) if i not in spread.apart]
    exchanges = _exchanges(places, spread, len(specs))
    return Layout(exchanges, tuple(partial), Index(shared, len(specs)))


def _split_dimensions(placements: Sequence[object]) -> tuple[int, ...]:
    """The mesh dimensions over which a tensor is in pieces.

    Raises:
        UsageError: a placement of a kind that is not known here.
    """
    from torch.distributed.tensor import Partial, Replicate, Shard, placement_types

    shards = (Shard, getattr(placement_types, "_StridedShard", Shard))
    for placement in placements:
        if not isinstance(placement, (*shards, Replicate, Partial)):
            raise UsageError(
                f"a gradient is laid out over ranks as {placement!r}, which steadygrad does not "
                "understand, so its norm cannot be told. Type gradient.redistribute(placements="
                "[Replicate(), ...]) before, or leave that parameter out of what is clipped"
            )
    return tuple(d for d, placement in enumerate(placements) if isinstance(placement, shards))


def _exchanges(places: dict[int, _TensorPlace], spread: Spread, count: int) -> tuple[Exchange, ...]:
    plain = [i for i in range(count) if i not in places and i not in spread.apart]
    left = dict(spread.apart)
    exchanges: list[Exchange] = []
    for grid, mine in _arenas(places):
        group = _group_over(grid, [places[i] for i in mine])
        ranks = torch.distributed.get_process_group_ranks(group)
        apart = [i for i, g in left.items() if i not in places and _ranks(g) == grid.members]
        twins = {i: _twins(grid, places[i], ranks) for i in mine}
        exchanges.append(_exchange(group, twins, plain, apart, count))
        plain = []
        left = {i: g for i, g in left.items() if i not in apart}
    for group in dict.fromkeys(left.values()):
        apart = [i for i, other in left.items() if other is group]
        exchanges.append(_exchange(group, {}, plain, apart, count))
        plain = []
    return tuple(exchanges)


def _ranks(group: ProcessGroup) -> frozenset[int]:
    return _grid_of_group(group).members


def _exchange(
    group: ProcessGroup,
    twins: dict[int, NDArray[np.int64]],
    plain: list[int],
    apart: list[int],
    count: int,
) -> Exchange:
    ranks = tuple(torch.distributed.get_process_group_ranks(group))
    same = np.zeros(len(ranks), np.int64)  # a plain tensor is the same on every rank
    twins = twins | dict.fromkeys(plain, same)
    places = sorted(twins)
    alike: dict[bytes, list[int]] = {}
    for column, place in enumerate(places):
        alike.setdefault(twins[place].tobytes(), []).append(column)
    splits = [_split(columns, twins[places[columns[0]]], len(places)) for columns in alike.values()]
    return Exchange(group, ranks, Index(places, count), tuple(splits), Index(apart, count))


def _split(columns: list[int], twins: NDArray[np.int64], count: int) -> Split:
    owners = np.unique(twins[twins != UNKNOWN]).tolist()
    return Split(Index(columns, count), Index(owners, len(twins)), twins)


def _twins(grid: RankMesh, place: _TensorPlace, ranks: Sequence[int]) -> NDArray[np.int64]:
    """For each rank of an exchange, the row of the first one that holds the same piece."""
    row_of = {rank: row for row, rank in enumerate(ranks)}
    whole, split = _seen_from(grid, place)
    twins = np.full(len(ranks), UNKNOWN, np.int64)
    shape = whole.ranks.shape
    first = whole.ranks[tuple(slice(None if d in split else 1) for d in range(len(shape)))]
    firsts = np.broadcast_to(first, shape)
    for rank, twin in zip(whole.ranks.ravel().tolist(), firsts.ravel().tolist(), strict=True):
        twins[row_of[rank]] = row_of[twin]
    return twins


def _seen_from(grid: RankMesh, place: _TensorPlace) -> tuple[RankMesh, tuple[int, ...]]:
    """A tensor's own mesh as dimensions of the larger one, where their names tell that."""
    own = place.grid
    if own.members == grid.members or not own.names or not set(own.names) <= set(grid.names):
        return own, place.split
    return grid, tuple(grid.names.index(own.names[d]) for d in place.split)


# -- the ranks that exchange ---------------------------------------------------------------------


def _arenas(places: dict[int, _TensorPlace]) -> list[tuple[RankMesh, list[int]]]:
    """Meshes that contain all others, with the tensors over each: one where meshes nest."""
    largest = _maximal(list({id(p.grid): p.grid for p in places.values()}.values()))
    if len(largest) > 1:
        around = _around([place.mesh for place in places.values()])
        largest = [around] if around is not None else largest
    arenas: list[tuple[RankMesh, list[int]]] = [(grid, []) for grid in largest]
    for index, place in places.items():
        next(own for grid, own in arenas if place.grid.members <= grid.members).append(index)
    return arenas


def _maximal(grids: list[RankMesh]) -> list[RankMesh]:
    largest: list[RankMesh] = []
    for grid in sorted(grids, key=lambda g: (-len(g.members), -g.ranks.ndim)):
        if not any(grid.members <= other.members for other in largest):
            largest.append(grid)
    return largest


def _around(meshes: list[Any]) -> RankMesh | None:
    """The part of a common root mesh that spans these; None where there is none."""
    roots = {_root_of(mesh) for mesh in meshes}
    root = roots.pop() if len(roots) == 1 else None
    if root is None or root.mesh_dim_names is None:
        return None
    wanted = {name for mesh in meshes for name in mesh.mesh_dim_names or ("",)}
    if not wanted <= set(root.mesh_dim_names):
        return None
    here = root.get_coordinate()
    index = tuple(
        slice(None) if name in wanted else here[d] for d, name in enumerate(root.mesh_dim_names)
    )
    names = tuple(name for name in root.mesh_dim_names if name in wanted)
    return RankMesh(root.mesh.numpy().astype(np.int64)[index], names)


def _root_of(mesh: object) -> Any:
    root = getattr(mesh, "_get_root_mesh", None)
    return root() if root is not None else None


@functools.lru_cache(maxsize=64)
def _grid_of(mesh: DeviceMesh) -> RankMesh:
    return RankMesh(mesh.mesh.numpy().astype(np.int64), tuple(mesh.mesh_dim_names or ()))


@functools.lru_cache(maxsize=64)
def _grid_of_group(group: ProcessGroup) -> RankMesh:
    return RankMesh(np.array(torch.distributed.get_process_group_ranks(group), np.int64))


def _group_over(grid: RankMesh, places: Iterable[_TensorPlace]) -> ProcessGroup:
    """A process group of exactly these ranks: one that is there, or else a new one."""
    candidates = [torch.distributed.group.WORLD]
    for place in places:
        candidates += [place.group] if place.group is not None else []
        if place.mesh is not None:
            candidates += [place.mesh.get_group(d) for d in range(place.mesh.ndim)]
    for group in candidates:
        if group is not None and _grid_of_group(group).members == grid.members:
            return group
    return _new_group(tuple(sorted(grid.members)), id(torch.distributed.group.WORLD))


@functools.lru_cache(maxsize=64)
def _new_group(ranks: tuple[int, ...], world: int) -> ProcessGroup:
    # its own members alone meet here: ranks elsewhere may be at another point of the training
    return cast(
        "ProcessGroup", torch.distributed.new_group(list(ranks), use_local_synchronization=True)
    )
