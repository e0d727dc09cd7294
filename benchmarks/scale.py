"""What the norm of a sharded model costs at any number of ranks: the alpha-beta model, checked.

A message of n bytes takes alpha + beta n seconds. Both are fitted to the collectives of the
processes that run this; the model then predicts what these processes take for the exchange of
figures, and, with constants of a large cluster, what 10,000 GPUs would.

`python -m benchmarks.scale` prints the table of the cluster; under
`torchrun --standalone --nproc-per-node=2 -m benchmarks.scale` it measures, too.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

FIGURES = 4 * 8
"""Bytes a tensor: norm, largest magnitude, non-finite and zero elements, float64."""
MAXIMA, SUMS = 5 * 8, 3 * 8
"""Bytes a tensor of the two all-reduces that take the gather's place beyond `GATHERED` ranks."""
GATHERED = 64
SIZES = tuple(2**k for k in range(3, 21, 2))
"""Bytes a rank in the collectives that are fitted."""
ROUNDS = 200


class Link(NamedTuple):
    """What a message costs.

    Attributes:
        alpha: seconds a message.
        beta: seconds a byte.
    """

    alpha: float
    beta: float


CLUSTER = Link(10e-6, 1 / 25e9)
"""10 us a message between machines, 200 Gbit/s a GPU."""


class Cost(NamedTuple):
    """One way to the norm, in one step.

    Attributes:
        collectives: how many, one after the other.
        received: bytes that each rank receives.
        seconds: by the model.
    """

    collectives: int
    received: float
    seconds: float


def gathered(link: Link, ranks: int, sent: float) -> Cost:
    """One all-gather of ``sent`` bytes a rank: a ring, or doubling where messages are few."""
    body = (ranks - 1) * sent
    rounds = min(ranks - 1, math.ceil(math.log2(ranks)))
    return Cost(1, body, rounds * link.alpha + body * link.beta)


def reduced(link: Link, ranks: int, sent: float) -> Cost:
    """One all-reduce of ``sent`` bytes: doubling or a ring, whichever is quicker."""
    rounds = math.ceil(math.log2(ranks))
    doubling = rounds * (link.alpha + sent * link.beta)
    ring = 2 * (ranks - 1) * (link.alpha + sent / ranks * link.beta)
    return Cost(1, 2 * sent, min(doubling, ring))


def at_scale(ranks: int, tensors: int, link: Link = CLUSTER) -> dict[str, Cost]:
    """What each way costs where all tensors are sharded over all ranks.

    Args:
        ranks: of the mesh.
        tensors: of the model.
        link: of the cluster.
    """
    sums = _both(reduced(link, ranks, MAXIMA * tensors), reduced(link, ranks, SUMS * tensors))
    gather = gathered(link, ranks, FIGURES * tensors)
    return {
        "steadygrad, figures of every tensor": gather if ranks <= GATHERED else sums,
        "the same by one gather": gather,
        "torch clip_grad_norm_ (FSDP2), total norm": reduced(link, ranks, 4 * tensors),
        "Megatron get_grad_norm_fp32, total norm": reduced(link, ranks, 4),
    }


def _both(first: Cost, second: Cost) -> Cost:
    return Cost(*(a + b for a, b in zip(first, second, strict=True)))


# -- measuring ------------------------------------------------------------------------------------


def measure() -> None:
    """Fit alpha and beta to this machine, and hold the model against what it did not see."""
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.debug import CommDebugMode

    import steadygrad.torch as sg

    dist.init_process_group("gloo")
    ranks = dist.get_world_size()
    torch.set_num_threads(1)

    def gather(size: int) -> Callable[[], object]:
        mine = torch.zeros(size, dtype=torch.uint8)
        every = torch.zeros(size * ranks, dtype=torch.uint8)
        return lambda: dist.all_gather_into_tensor(every, mine)

    def reduce(size: int) -> Callable[[], object]:
        values = torch.zeros(size // 8, dtype=torch.float64)
        return lambda: dist.all_reduce(values)

    times = np.array([_best(gather(size)) for size in SIZES])
    rounds, received = min(ranks - 1, math.ceil(math.log2(ranks))), (ranks - 1) * np.array(SIZES)
    # relative errors count alike, small messages and large ones
    columns = np.stack([np.full(len(SIZES), float(rounds)), received], axis=1) / times[:, None]
    alpha, beta = np.linalg.lstsq(columns, np.ones(len(SIZES)), rcond=None)[0]
    link = Link(float(alpha), float(beta))
    _say(f"{ranks} ranks, gloo: alpha {alpha * 1e6:.0f} us, beta {beta * 1e9:.2f} ns a byte")
    mesh = init_device_mesh("cpu", (ranks,))
    for blocks in (40, 160):
        layers = [torch.nn.Linear(32, 32) for _ in range(blocks)]
        for layer in layers:
            fully_shard(layer, mesh=mesh)
        model = fully_shard(torch.nn.Sequential(*layers), mesh=mesh)
        model(torch.randn(2, 32)).sum().backward()
        parameters = list(model.parameters())
        with CommDebugMode() as counted:
            torch.nn.utils.clip_grad_norm_(parameters, 1e9).full_tensor()
        predicted = gathered(link, ranks, FIGURES * len(parameters)).seconds
        seen = _best(gather(FIGURES * len(parameters)))
        whole = _best(lambda p=parameters: sg.clip_grad_norm_(p, 1e9), 30)
        sums_predicted = reduced(link, ranks, MAXIMA * len(parameters)).seconds
        sums_seen = _best(reduce(MAXIMA * len(parameters)))
        _say(
            f"{len(parameters)} tensors: gather predicted {predicted * 1e3:.2f} ms, measured "
            f"{seen * 1e3:.2f} ms; all-reduce predicted {sums_predicted * 1e3:.2f} ms, measured "
            f"{sums_seen * 1e3:.2f} ms; clip_grad_norm_ {whole * 1e3:.2f} ms; torch's has "
            f"{counted.get_total_counts()} collective"
        )
    dist.destroy_process_group()


def _best(function: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Seconds of the quickest of some calls, all ranks starting together."""
    import torch.distributed as dist

    best = math.inf
    for _ in range(rounds):
        dist.barrier()
        began = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - began)
    return best


def _say(line: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(line, flush=True)


def main() -> None:
    """Measure where there are ranks; then tell what a large cluster would take."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        measure()
    for ranks, tensors in ((64, 2_000), (1_000, 2_000), (10_000, 2_000)):
        _say(f"{ranks:,} GPUs, {tensors:,} tensors:")
        for name, cost in at_scale(ranks, tensors).items():
            _say(
                f"  {name}: {cost.collectives:,} collectives, {cost.received / 1e6:,.3f} MB "
                f"received, {cost.seconds * 1e3:,.2f} ms"
            )


if __name__ == "__main__":
    main()
