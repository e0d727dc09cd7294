"""A script for several ranks that knows nothing of steadygrad; prints its true norms."""

from __future__ import annotations

import json
import os
import signal
import time

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

dist.init_process_group("gloo")
RANK, RANKS = dist.get_rank(), dist.get_world_size()
MESH = init_device_mesh("cpu", (RANKS,))


def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 12), torch.nn.Tanh(), torch.nn.Linear(12, 3))


def nested(model):
    """Each layer is put together for its own passes, and is in pieces in between."""
    fully_shard(model[0], mesh=MESH)
    return fully_shard(model, mesh=MESH)


def whole_norm(model):
    """Float64, of gathered gradients."""
    grads = [p.grad.full_tensor() for p in model.parameters()]
    return float(torch.cat([g.double().flatten() for g in grads]).norm())


def train(model, x, clip):
    """Three steps; the norms before each clip call."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    norms = []
    for step in range(3):
        optimizer.zero_grad()
        ((model(x) - x[:, :3] * (9 + step)) ** 2).mean().backward()
        norms.append(clip(model))
        optimizer.step()
    return norms


def by_norm(model):
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def by_value(model):
    norm = whole_norm(model)
    torch.nn.utils.clip_grad_value_(model.parameters(), 0.5)
    return norm


def die_once(x):
    """In the first attempt, rank 1 is killed in its fourth step."""
    model = torch.nn.parallel.DistributedDataParallel(net())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    for step in range(4):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        if step == 3 and RANK == 1:
            time.sleep(2)  # rank 0 commits what it has
            os.kill(os.getpid(), signal.SIGKILL)
        optimizer.step()


def main():
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(5)) * 3
    mine = x.chunk(RANKS)[RANK]
    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        die_once(mine)
    plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
    fsdp1 = FullyShardedDataParallel(net(), use_orig_params=True, device_id=torch.device("cpu"))
    norms = [
        train(fully_shard(net(), mesh=MESH), mine, by_norm),  # 3 rows on 2 ranks: uneven
        train(nested(net()), mine, by_value),
        train(parallelize_module(net(), MESH, plan), x, by_norm),
        train(fsdp1, mine, lambda model: float(model.clip_grad_norm_(1.0))),
    ]
    if RANK == 0:
        print(json.dumps(norms))
    dist.destroy_process_group()


main()
