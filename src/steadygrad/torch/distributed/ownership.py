"""Which ranks own what, where tensors themselves do not tell.

Three things tell it: the process group that the user gives; the modules of
FullyShardedDataParallel (FSDP1), whose parameters are pieces of a flat one; and the stages of
`torch.distributed.pipelining`, each of which is another part of the model.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch.utils.weak import WeakIdKeyDictionary

from steadygrad.errors import UsageError
from steadygrad.policies import Policy
from steadygrad.policies.groups import Groups as PolicyGroups
from steadygrad.torch.distributed.exchange import Tell
from steadygrad.torch.distributed.layout import NOWHERE, Spread
from steadygrad.torch.gradients.pieces import any_sharded
from steadygrad.torch.internals.alive import alive

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Groups: TypeAlias = "ProcessGroup | Mapping[str, ProcessGroup | None] | None"
"""A group whose ranks have other parameters each, or ``{name pattern: group}``."""

FSDP1 = "torch.distributed.fsdp.fully_sharded_data_parallel"
FSDP2 = "torch.distributed.fsdp._fully_shard._fsdp_param"
PIPELINING = "torch.distributed.pipelining.stage"

_groups: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""Each parameter of FSDP1 to the group over which it is cut; None where it is whole."""
_spreads: dict[tuple[int, ...], tuple[Spread, list[int]]] = {}
_MOST = 16


def spread_of(
    params: Sequence[torch.Tensor],
    names: Sequence[str] = (),
    process_group: Groups = None,
    tell: Tell | None = None,
) -> Spread:
    """What the parameters do not tell of where their pieces are.

    Args:
        params: parameters, the same ones in the same order on every rank that shares them.
        names: theirs, for patterns in `process_group`.
        process_group: the group whose ranks have other parameters each (pipeline stages,
            experts), or ``{name pattern: group}``; None finds the stages of pipelining itself.
        tell: given a sentence where ranks differ in what they should hold alike; None warns.

    Raises:
        UsageError: parameters of FSDP1 whose module is gone, or no process group.
    """
    pieces = dict(_flat_pieces(params))
    apart = dict(_apart(params, names, process_group))
    if not pieces and not apart and not any_sharded(params):
        return NOWHERE
    return Spread(pieces, apart, tuple(params), tell)


def spread_of_some(
    params: Sequence[torch.Tensor], tell: Tell | None = None
) -> tuple[Spread, list[int] | None]:
    """`spread_of` for parameters that have a gradient, which under FSDP1 differ by rank.

    Args:
        params: parameters with gradients on this rank.
        tell: given a sentence where ranks differ; None warns.

    Returns:
        A spread of all parameters that any rank may have gradients of, and the places of these
        among them; None for all.
    """
    # to ask each parameter takes as long as to read a small one: first what rules all of them out
    if FSDP1 not in sys.modules or not torch.distributed.is_initialized():
        return NOWHERE, None
    if any_sharded(params) or not any(map(is_flat, params)):
        return NOWHERE, None
    key = tuple(map(id, params))
    if key not in _spreads:
        if len(_spreads) >= _MOST:
            _spreads.clear()
        pieces = list(_flat_pieces(params))
        flat = [params[i] for i, _ in pieces]
        every = [p for p in _groups if _groups[p] is not None]  # in one order on every rank
        every += [p for p in params if not any(p is other for other in flat)]
        place = {id(p): i for i, p in enumerate(every)}
        spread = spread_of(every, tell=tell)
        _spreads[key] = (spread, [place[id(p)] for p in params])  # holds them: ids are used again
    return _spreads[key]


def refuse_beyond_norms(spread: Spread, policy: Policy) -> None:
    """Refuse what cannot be right where ranks hold unmarked pieces, or other tensors.

    Args:
        spread: of the parameters.
        policy: that is to clip them.

    Raises:
        UsageError: says what to type.
    """
    if spread.pieces and policy.elementwise:
        raise UsageError(
            f"{policy.spec()} looks at elements and rows of whole tensors, and "
            "FullyShardedDataParallel (FSDP1) cuts tensors anywhere. Shard with "
            "torch.distributed.fsdp.fully_shard, or type clip='norm:1.0'"
        )
    if spread.apart and isinstance(policy, PolicyGroups):
        raise UsageError(
            "clip={pattern: spec} takes a norm of each group, and with process_group= this rank "
            "does not see the other ranks' tensors of a group. Type one spec, such as "
            "clip='norm:1.0', or one optimizer a group"
        )


def _apart(
    params: Sequence[torch.Tensor], names: Sequence[str], process_group: Groups
) -> Iterator[tuple[int, ProcessGroup]]:
    """Places of the parameters that this rank has for itself, and among which ranks."""
    if process_group is None:
        yield from _of_stages(params)
    elif isinstance(process_group, Mapping):
        _require_groups(process_group.values())
        for place, name in enumerate(names):
            pattern = next((p for p in process_group if fnmatchcase(name, p)), None)
            group = None if pattern is None else process_group[pattern]
            if group is not None:
                yield place, group
    else:
        _require_groups([process_group])
        yield from ((place, process_group) for place in range(len(params)))


def _require_groups(groups: Any) -> None:
    for group in groups:
        if group is not None and not isinstance(group, torch.distributed.ProcessGroup):
            raise UsageError(
                f"process_group must be a torch.distributed.ProcessGroup, or {{name pattern: "
                f"group}}, got {type(group).__name__}; type process_group=mesh.get_group('pp')"
            )


def _of_stages(params: Sequence[torch.Tensor]) -> Iterator[tuple[int, ProcessGroup]]:
    """Parameters of stages of torch.distributed.pipelining."""
    # without a process group no stage can exist, and the search goes through the whole heap
    if PIPELINING not in sys.modules or not torch.distributed.is_initialized():
        return
    base = sys.modules[PIPELINING]._PipelineStageBase
    owner: dict[int, Any] = {}
    for stage in alive(base):
        if stage.group_size > 1:
            group: Any = stage.group or torch.distributed.group.WORLD
            owner.update((id(p), group) for p in stage.submod.parameters())
    yield from ((i, owner[id(p)]) for i, p in enumerate(params) if id(p) in owner)


def _flat_pieces(params: Sequence[torch.Tensor]) -> Iterator[tuple[int, ProcessGroup]]:
    """Parameters of FSDP1, and the group over which each is cut.

    Raises:
        UsageError: the module that has cut them is not there.
    """
    if "torch.distributed.fsdp" not in sys.modules or any_sharded(params):
        return
    flat = [(i, p) for i, p in enumerate(params) if is_flat(p)]
    if any(p not in _groups for _, p in flat):
        _find_flat_pieces()
    for place, parameter in flat:
        if parameter not in _groups:
            raise UsageError(
                "these parameters are sharded by FullyShardedDataParallel (FSDP1), and its module "
                "is not there to tell how. Keep the module, make the optimizer of its "
                "parameters(), or shard with torch.distributed.fsdp.fully_shard"
            )
        if _groups[parameter] is not None:
            yield place, _groups[parameter]


def is_flat(parameter: object) -> bool:
    """Whether FSDP1 has made it, or made it a view of a flat parameter."""
    return bool(
        getattr(parameter, "_fsdp_flattened", False) or getattr(parameter, "_is_flat_param", False)
    )


def gathered_for_a_pass() -> set[int]:
    """Ids of the leaves that `fully_shard` puts together for a pass; optimizers hold the pieces."""
    module = sys.modules.get(FSDP2)
    shards = alive(module.FSDPParam) if module is not None else ()
    return {id(getattr(shard, "_unsharded_param", None)) for shard in shards}


def _find_flat_pieces() -> None:
    module = sys.modules.get(FSDP1)
    modules = alive(module.FullyShardedDataParallel) if module is not None else ()
    handles = [h for fsdp in modules if (h := getattr(fsdp, "_handle", None)) is not None]
    # the collector lists objects in an order that may differ by rank
    for handle in sorted(handles, key=lambda h: (h.flat_param._fqns, h.flat_param._shapes)):
        group = handle.process_group if handle.uses_sharded_strategy else None
        flat = handle.flat_param
        for parameter in (flat, *(flat._params or ()), *(flat._shared_params or ())):
            _groups[parameter] = group
