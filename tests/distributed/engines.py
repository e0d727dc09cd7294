"""Every way of spreading a training over four ranks, each beside the same training on one process.

Run as a script by the fixture `four_ranks`; the cases of one engine share its process groups.
"""

from __future__ import annotations

import json
import math
import pathlib
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from unittest import mock

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as checkpoints
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP1
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

import steadygrad.torch as sg
from steadygrad.errors import ReplicasDifferWarning, UsageError
from steadygrad.torch.distributed import exchange

CPU = torch.device("cpu")
STEPS, BROKEN = 2, 1
NORM, PER_TENSOR, ELEMENTWISE, ADAPTIVE = "norm:0.1", "tensor-norm:0.05", "agc:0.01", "zclip"
EVERY = (NORM, "norm:0.02,p=inf", PER_TENSOR, ELEMENTWISE, ADAPTIVE)
CLIPS: dict[str, tuple[str, ...]] = {
    "ddp": EVERY,
    "ddp, frozen and tied": (NORM,),
    "ddp bfloat16": (NORM,),
    "ddp, static graph, checkpointed": (NORM,),
    "ddp, no_sync": (NORM,),
    "ddp, PowerSGD hook": (NORM,),
    "fsdp2": EVERY,
    "fsdp2 mixed": (NORM,),
    "fsdp2 bfloat16": (NORM,),
    "fsdp2 offload": (NORM,),
    "fsdp2, frozen and tied": (NORM,),
    "fsdp2, no_sync, checkpointed": (NORM,),
    "fsdp2, ignored parameters": (NORM, ELEMENTWISE),
    "hsdp": (NORM, ELEMENTWISE),
    "tp": (NORM, EVERY[1], ELEMENTWISE),
    "sequence parallel": (NORM, ELEMENTWISE),
    "fsdp2 x tp": EVERY,
    "fsdp2 x sequence parallel": (NORM,),
    "hsdp x tp": (NORM,),
    "hsdp x tp, 2 x 2 x 1": (NORM,),
    "zero": (NORM, ADAPTIVE),
    "fsdp1": EVERY,
    "fsdp1 flat": (NORM,),
    "pipeline": (NORM, PER_TENSOR, ADAPTIVE),
    "pipeline found": (NORM,),
    "pipeline x fsdp2": (NORM,),
    "experts": (NORM, PER_TENSOR),
}
"""The policies that each engine is run with."""
MANY = ("fsdp2", "fsdp2 x tp", "experts")
"""Engines that are also run with `NORM` as if the ranks were too many to gather from each."""


class Net(nn.Module):
    """Two blocks, so that it can be cut into stages."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 12), nn.Linear(12, 6)
        self.norm, self.out = nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[batch, 6]`` to ``[batch, 3]``."""
        return self.out(self.norm(x + self.down(torch.tanh(self.up(x)))))


def net(dtype: torch.dtype = torch.float32) -> Net:
    """The same one everywhere."""
    torch.manual_seed(3)
    return Net().to(dtype)


def tied(model: Net) -> Net:
    """One weight frozen, one bias shared by two layers."""
    model.up.bias.requires_grad_(False)
    model.norm.bias = model.down.bias
    return model


def data(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The batch of all ranks."""
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 6, generator=generator), torch.randn(8, 3, generator=generator) * 3


def loss_of(model: Callable, x: torch.Tensor, y: torch.Tensor, broken: bool) -> torch.Tensor:
    """A loss; NaN in its gradients where it is broken."""
    loss = ((model(x).float() - y) ** 2).mean()
    return loss * math.nan if broken else loss


def make_optimizer(params: object) -> torch.optim.Optimizer:
    """An optimizer whose first step already depends on the size of gradients."""
    return torch.optim.SGD(params, lr=0.3, momentum=0.9)


@dataclass
class Engine:
    """One way of spreading a training.

    Attributes:
        build: makes model and optimizer.
        share: part of the batch that a rank sees, as ``(number, of)``.
        options: for `attach`.
        pieces: this rank's gradients, of which all ranks' together make the whole.
        backward: instead of a forward and a backward pass.
    """

    build: Callable[[], tuple[nn.Module, torch.optim.Optimizer]]
    share: tuple[int, int]
    options: dict = field(default_factory=dict)
    pieces: Callable[[nn.Module], list[torch.Tensor]] | None = None
    backward: Callable[[nn.Module, torch.Tensor, torch.Tensor, bool], None] | None = None


def engines(rank: int) -> dict[str, Engine]:
    """All of them; their process groups are made here, on all ranks alike."""
    flat = init_device_mesh("cpu", (4,))
    grid = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    deep, wide = (
        init_device_mesh("cpu", shape, mesh_dim_names=("rep", "dp", "tp"))
        for shape in ((2, 1, 2), (2, 2, 1))
    )
    row, column = divmod(rank, 2)

    def simple(wrap: Callable[[Net], nn.Module], **options: object) -> Callable:
        def build() -> tuple[nn.Module, torch.optim.Optimizer]:
            model = wrap(net(**options))
            return model, make_optimizer(model.parameters())

        return build

    def sharded(mesh: object, **options: object) -> Callable[[Net], nn.Module]:
        def wrap(model: Net) -> nn.Module:
            for part in (model.up, model.down):
                fully_shard(part, mesh=mesh, **options)
            return fully_shard(model, mesh=mesh, **options)

        return wrap

    def tensor_parallel(mesh: object, model: Net) -> Net:
        return parallelize_module(model, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})

    def sequence_parallel(mesh: object, model: Net) -> Net:
        plan = {
            "up": ColwiseParallel(input_layouts=Shard(0)),
            "down": RowwiseParallel(output_layouts=Shard(0)),
            "norm": SequenceParallel(sequence_dim=0),
            "out": PrepareModuleInput(
                input_layouts=Shard(0), desired_input_layouts=Replicate(), use_local_output=True
            ),
        }
        parts = PrepareModuleInput(
            input_layouts=Replicate(), desired_input_layouts=Shard(0), use_local_output=True
        )
        return parallelize_module(parallelize_module(model, mesh, plan), mesh, parts)

    def compressed(model: Net) -> nn.Module:
        model = DistributedDataParallel(model)
        state = powerSGD_hook.PowerSGDState(None, 1, start_powerSGD_iter=2)
        model.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
        return model

    def two_ways(model: Net) -> nn.Module:
        return sharded(grid["dp"])(tensor_parallel(grid["tp"], model))

    def three_ways(mesh: object) -> Callable[[Net], nn.Module]:
        return lambda model: sharded(mesh["rep", "dp"])(tensor_parallel(mesh["tp"], model))

    def zero() -> tuple[nn.Module, torch.optim.Optimizer]:
        # torch scripts functions when this is imported, and warns of that
        from torch.distributed.optim import ZeroRedundancyOptimizer

        model = DistributedDataParallel(net())
        options = {"optimizer_class": torch.optim.SGD, "lr": 0.3, "momentum": 0.9}
        return model, ZeroRedundancyOptimizer(model.parameters(), **options)

    everyone, half = (rank, 4), (row, 2)
    mixed = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    return {
        "ddp": Engine(simple(DistributedDataParallel), everyone),
        "ddp bfloat16": Engine(simple(DistributedDataParallel, dtype=torch.bfloat16), everyone),
        "ddp, frozen and tied": Engine(
            simple(lambda m: DistributedDataParallel(tied(m))), everyone
        ),
        "ddp, static graph, checkpointed": Engine(
            simple(lambda m: DistributedDataParallel(checkpointed(m), static_graph=True)), everyone
        ),
        "ddp, no_sync": Engine(
            simple(DistributedDataParallel), everyone, backward=in_two_micro_batches
        ),
        "ddp, PowerSGD hook": Engine(simple(compressed), everyone),
        "fsdp2": Engine(simple(sharded(flat)), everyone),
        "fsdp2, no_sync, checkpointed": Engine(
            simple(lambda m: fully_shard(checkpointed(m), mesh=flat)),
            everyone,
            backward=in_two_micro_batches,
        ),
        "fsdp2, frozen and tied": Engine(
            simple(lambda m: fully_shard(tied(m), mesh=flat)), everyone
        ),
        "fsdp2, ignored parameters": Engine(
            simple(lambda m: fully_shard(m, mesh=flat, ignored_params=set(m.norm.parameters()))),
            everyone,
            backward=averaging_ignored,
        ),
        "fsdp2 mixed": Engine(simple(sharded(flat, mp_policy=mixed)), everyone),
        "fsdp2 bfloat16": Engine(simple(sharded(flat), dtype=torch.bfloat16), everyone),
        "fsdp2 offload": Engine(
            simple(sharded(flat, offload_policy=CPUOffloadPolicy(pin_memory=False))), everyone
        ),
        "hsdp": Engine(simple(sharded(grid)), everyone),
        "tp": Engine(simple(lambda m: tensor_parallel(flat, m)), (0, 1)),
        "sequence parallel": Engine(simple(lambda m: sequence_parallel(flat, m)), (0, 1)),
        "fsdp2 x tp": Engine(simple(two_ways), half),
        "fsdp2 x sequence parallel": Engine(
            simple(lambda m: sharded(grid["dp"])(sequence_parallel(grid["tp"], m))), half
        ),
        "hsdp x tp": Engine(simple(three_ways(deep)), half),
        "hsdp x tp, 2 x 2 x 1": Engine(simple(three_ways(wide)), everyone),
        "zero": Engine(zero, everyone),
        "fsdp1": Engine(
            simple(lambda m: FSDP1(m, use_orig_params=True, device_id=CPU)),
            everyone,
            pieces=gathered,
        ),
        "fsdp1 flat": Engine(
            simple(lambda m: FSDP1(m, use_orig_params=False, device_id=CPU)),
            everyone,
            pieces=gathered,
        ),
        **staged(rank, column, grid),
    }


def checkpointed(model: Net) -> Net:
    """Its first layers run forward again in the backward pass."""
    model.up, model.down = checkpoint_wrapper(model.up), checkpoint_wrapper(model.down)
    return model


def in_two_micro_batches(model: nn.Module, x: torch.Tensor, y: torch.Tensor, broken: bool) -> None:
    """Gradients are added up, and averaged over the ranks after the second half only."""
    halves = list(zip(x.chunk(2), y.chunk(2), strict=True))
    if isinstance(model, DistributedDataParallel):
        with model.no_sync():
            (loss_of(model, *halves[0], broken) / 2).backward()
    else:
        model.set_requires_gradient_sync(False)
        (loss_of(model, *halves[0], broken) / 2).backward()
        model.set_requires_gradient_sync(True)
    (loss_of(model, *halves[1], False) / 2).backward()


def averaging_ignored(model: nn.Module, x: torch.Tensor, y: torch.Tensor, broken: bool) -> None:
    """Who has FSDP ignore parameters averages their gradients by hand."""
    loss_of(model, x, y, broken).backward()
    averaged([p for p in model.parameters() if not isinstance(p, DTensor)], None)


def gathered(model: nn.Module, group: object = None) -> list[torch.Tensor]:
    """The gradients of all ranks, each of which has its own."""
    own = [whole_of(p.grad) for p in model.parameters() if p.grad is not None]
    every: list = [None] * dist.get_world_size(group)
    dist.all_gather_object(every, own, group=group)
    return [tensor for rank in every for tensor in rank]


class Front(nn.Module):
    """The first stage."""

    def __init__(self, whole: Net) -> None:
        super().__init__()
        self.up, self.down, self.norm = whole.up, whole.down, whole.norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[batch, 6]`` to ``[batch, 6]``."""
        return self.norm(x + self.down(torch.tanh(self.up(x))))


class Experts(nn.Module):
    """A layer that all ranks share, and one of this rank alone."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.shared = nn.Linear(6, 3)
        torch.manual_seed(10 + rank)
        self.expert = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[batch, 6]`` to ``[batch, 3]``."""
        return self.shared(x) + self.expert(x)


def averaged(parameters: object, group: object) -> None:
    """Average plain gradients over a group, as data parallelism by hand does."""
    for parameter in parameters:
        dist.all_reduce(parameter.grad, group=group)
        parameter.grad /= dist.get_world_size(group)


def staged(rank: int, column: int, grid: object) -> dict[str, Engine]:
    """Pipeline stages, two of them, each on two ranks; experts, one a rank."""
    stages, copies = grid.get_group("tp"), grid.get_group("dp")
    schedules = {}

    def build_stage(mesh: object = None) -> tuple[nn.Module, torch.optim.Optimizer]:
        whole = net()
        model = (Front(whole), whole.out)[column]
        if mesh is not None:
            fully_shard(model, mesh=mesh)
        stage = PipelineStage(model, column, 2, torch.device("cpu"), group=stages)
        schedules[model] = ScheduleGPipe(stage, 2, loss_fn=lambda o, t: ((o - t) ** 2).mean())
        return model, make_optimizer(model.parameters())

    def pipeline(model: nn.Module, x: torch.Tensor, y: torch.Tensor, broken: bool) -> None:
        y = y * math.nan if broken else y
        schedules[model].step(*(() if column else (x,)), **({"target": y} if column else {}))
        if not isinstance(next(model.parameters()), DTensor):
            averaged(model.parameters(), copies)

    def through_experts(model: nn.Module, x: torch.Tensor, y: torch.Tensor, broken: bool) -> None:
        loss_of(model, x, y, broken).backward()
        averaged(model.shared.parameters(), None)

    def build_experts() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = Experts(rank)
        return model, make_optimizer(model.parameters())

    def stage_pieces(model: nn.Module) -> list[torch.Tensor]:
        return gathered(model, stages)

    def expert_pieces(model: nn.Module) -> list[torch.Tensor]:
        return [p.grad for p in model.shared.parameters()] + gathered(model.expert)

    experts = {"expert.*": dist.group.WORLD}
    return {
        "pipeline": Engine(
            build_stage, (rank // 2, 2), {"process_group": stages}, stage_pieces, pipeline
        ),
        "pipeline found": Engine(build_stage, (rank // 2, 2), {}, stage_pieces, pipeline),
        "pipeline x fsdp2": Engine(
            lambda: build_stage(grid["dp"]),
            (rank // 2, 2),
            {"process_group": stages},
            stage_pieces,
            pipeline,
        ),
        "experts": Engine(
            build_experts, (rank, 4), {"process_group": experts}, expert_pieces, through_experts
        ),
    }


def whole_of(tensor: torch.Tensor) -> torch.Tensor:
    """Gathered from all ranks where it is sharded."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


def whole_gradients(engine: Engine, model: nn.Module) -> list[torch.Tensor]:
    """Every gradient as one tensor, the same list on every rank."""
    if engine.pieces is not None:
        return engine.pieces(model)
    return [whole_of(p.grad) for p in model.parameters() if p.grad is not None]


def norm_of(grads: list[torch.Tensor], p: float) -> float:
    """The oracle: float64, of whole gradients."""
    flat = torch.cat([g.detach().double().flatten() for g in grads])
    return torch.linalg.vector_norm(flat, p).item()


def train(engine: Engine, clip: str) -> dict:
    """Some steps, one of them with NaN on the last rank alone."""
    model, optimizer = engine.build()
    number, of = engine.share
    records, oracle = [], []
    with sg.attach(optimizer, clip=clip, model=model, **engine.options) as steady:
        for step in range(STEPS):
            x, y = (part.chunk(of)[number] for part in data(step))
            x = x.to(next(model.parameters()).dtype)
            broken = step == BROKEN and dist.get_rank() == dist.get_world_size() - 1
            optimizer.zero_grad()
            if engine.backward is not None:
                engine.backward(model, x, y, broken)
            else:
                loss_of(model, x, y, broken).backward()
            oracle.append(norm_of(whole_gradients(engine, model), steady.policy.norm_type))
            counted, calls = exchange._GATHER, []
            exchange._GATHER = lambda *a, **k: (calls.append(1), counted(*a, **k))  # noqa: B023
            optimizer.step()
            exchange._GATHER = counted
            last = steady.last
            records.append([last.norm, last.coef, last.action, len(calls)])
        state = {k: v.tolist() for k, v in steady.state_dict()["state"].items()}
    return {"records": records, "oracle": oracle, "weights": weights_of(model), "state": state}


def weights_of(model: nn.Module) -> list:
    """Whole weights, rounded to nothing; empty where this rank has only pieces."""
    if any(isinstance(m, FSDP1) for m in model.modules()):
        with FSDP1.summon_full_params(model):
            return [p.detach().flatten().tolist() for p in model.parameters()]
    return [whole_of(p).float().flatten().tolist() for p in model.parameters()]


def resharded(folder: str) -> list:
    """A training whose adaptive state is saved by four ranks, and goes on on two and two.

    Returns:
        State of the method and weights at the end: of the training that went on, and of that which
        was loaded before its first step.
    """

    def begin(mesh: object) -> tuple:
        model = fully_shard(net(), mesh=mesh)
        optimizer = make_optimizer(model.parameters())
        return model, optimizer, sg.attach(optimizer, clip="adagc:warmup=2", model=model)

    def go_on(model: nn.Module, optimizer: torch.optim.Optimizer, begin: int, parts: tuple) -> None:
        for step in range(begin, begin + 3):
            optimizer.zero_grad()
            x, y = (part.chunk(parts[1])[parts[0]] for part in data(step))
            loss_of(model, x, y, False).backward()
            optimizer.step()

    def saved(model: nn.Module, optimizer: torch.optim.Optimizer, steady: object) -> dict:
        weights, moments = get_state_dict(model, optimizer)
        return {"weights": weights, "moments": moments, "steady": steady}

    def ended(model: nn.Module, steady: object) -> list:
        state = steady.state_dict()
        steady.detach()
        return [steady.steps, {k: v.tolist() for k, v in state["state"].items()}, weights_of(model)]

    rank = dist.get_rank()
    first = begin(init_device_mesh("cpu", (4,)))
    go_on(*first[:2], 0, (rank, 4))
    checkpoints.save(saved(*first), checkpoint_id=folder)
    go_on(*first[:2], 3, (rank, 4))
    half = init_device_mesh("cpu", (2, 2), mesh_dim_names=("halves", "dp"))["dp"]
    second = begin(half)
    states = saved(*second)
    checkpoints.load(states, checkpoint_id=folder, process_group=half.get_group())
    set_state_dict(
        *second[:2], model_state_dict=states["weights"], optim_state_dict=states["moments"]
    )
    go_on(*second[:2], 3, (rank % 2, 2))
    return [ended(first[0], first[2]), ended(second[0], second[2])]


def main(rank: int, path: str) -> None:
    dist.init_process_group("gloo", rank=rank, world_size=4)
    results = {}
    only = sys.argv[2:]
    for name, engine in engines(rank).items():
        if only and name not in only:
            continue
        for clip in CLIPS[name]:
            with warnings.catch_warnings():
                warnings.simplefilter("error", ReplicasDifferWarning)
                try:
                    results[f"{name}|{clip}"] = train(engine, clip)
                except UsageError as error:
                    results[f"{name}|{clip}"] = {"refused": str(error)}
        if name in MANY:
            with mock.patch.object(exchange, "MOST_GATHERED", 0):
                results[f"{name}|many"] = train(engine, NORM)
    if not only:
        results["resharded"] = resharded(path.rpartition("/")[0] + "/checkpoint")
    with open(path, "w") as file:
        json.dump(results, file)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    sys.path.append(str(pathlib.Path(__file__).parents[1]))
    from forks import all_end

    all_end([partial(main, rank, f"{sys.argv[1]}/{rank}.json") for rank in range(4)])
