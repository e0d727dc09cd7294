"""Clipping many small DTensors: torch's `clip_grad_norm_` and ours, in turn.

`torchrun --standalone --nproc-per-node=2 -m benchmarks.sharded`
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import steadygrad.torch as sg

BLOCKS, ROUNDS = 40, 15


def milliseconds(function: Callable[[], object]) -> float:
    """The best of some calls, all ranks starting together."""
    best = float("inf")
    for _ in range(ROUNDS):
        dist.barrier()
        began = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - began)
    return best * 1e3


def main() -> None:
    """Shard a model, make gradients, and time both."""
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    blocks = [nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64)) for _ in range(BLOCKS)]
    for block in blocks:
        fully_shard(block, mesh=mesh)
    model = fully_shard(nn.Sequential(*blocks), mesh=mesh)
    model(torch.randn(4, 64)).sum().backward()
    parameters = list(model.parameters())
    torchs = milliseconds(lambda: nn.utils.clip_grad_norm_(parameters, 1e9).full_tensor())
    ours = milliseconds(lambda: sg.clip_grad_norm_(parameters, 1e9))
    if dist.get_rank() == 0:
        print(
            f"{len(parameters)} DTensors, {dist.get_world_size()} ranks: torch {torchs:.2f} ms, "
            f"steadygrad {ours:.2f} ms, ratio {ours / torchs:.2f}"
        )
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
