"""The Triton form on a GPU: `python -m benchmarks.gpu` prints a table, or says that there is none.

Times are of the device, by events, over interleaved rounds after a warm-up; the minimum
counts. Everything runs with torch's sync debug mode at "error", so a figure stands only
for work that made no host wait.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

import steadygrad.torch as sg
from benchmarks.clipping import FAR, SETS
from benchmarks.rows import Row, described, rows_of, table, write_csv
from benchmarks.timing import Contender
from steadygrad import kernels

HERE = Path(__file__).parent
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64)


def device_seconds(run: Callable[[], object], rounds: int) -> float:
    """The least time of the device for one run."""
    best = float("inf")
    for _ in range(rounds):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        start.record()
        run()
        end.record()
        torch.cuda.set_sync_debug_mode("default")
        end.synchronize()
        best = min(best, start.elapsed_time(end) / 1e3)
    return best


def parameters(shapes: list[tuple[int, ...]]) -> list[torch.nn.Parameter]:
    """Parameters on the GPU with gradients, seeded."""
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.zeros(shape, device="cuda")) for shape in shapes]
    for p in params:
        p.grad = torch.randn_like(p)
    return params


def contenders(params: list[torch.nn.Parameter]) -> list[Contender]:
    """Below the threshold; the first is what the ratios are against."""
    grads = [p.grad for p in params]
    flat = torch.cat([g.flatten() for g in grads])
    other = torch.empty_like(flat)
    return [
        Contender("torch clip_grad_norm_", partial(torch.nn.utils.clip_grad_norm_, params, FAR)),
        Contender("steadygrad, per-tensor figures", partial(kernels.read, grads), target=0.5),
        Contender(
            "steadygrad clip_grad_norm_", partial(sg.clip_grad_norm_, params, FAR), target=0.5
        ),
        Contender("copy of the same bytes", partial(other.copy_, flat)),
    ]


def bandwidths(rows: list[Row], size: int) -> str:
    """What the read reaches of the bandwidth of a copy, which reads and writes."""
    ms = {row.contender: row.ms for row in rows}
    copy = 2 * size / ms["copy of the same bytes"] / 1e6
    read = size / ms["steadygrad, per-tensor figures"] / 1e6
    return f"copy {copy:.0f} GB/s, read {read:.0f} GB/s: {read / copy:.1%} (to reach: 85 %)"


def worst_error(dtype: torch.dtype) -> float:
    """The largest relative error of a norm against float64 on the CPU."""
    sizes = (1, 1000, 65_537, 3_000_001)
    tensors = [torch.randn(n, device="cuda", dtype=torch.float32).to(dtype) for n in sizes]
    tensors.append(torch.full((1000,), 1e4, device="cuda").to(dtype))
    norms = kernels.read(tensors, form="triton").norms.cpu()
    wide = torch.complex128 if dtype.is_complex else torch.float64
    exact = torch.stack([t.cpu().to(wide).norm().real for t in tensors])
    return float(((norms - exact) / exact).abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("no GPU here: nothing was measured")
    print(torch.cuda.get_device_name(), f"torch {torch.__version__}", sep=", ", end="\n\n")
    rows: list[Row] = []
    for name, shapes_of in SETS.items():
        params = parameters(shapes_of())
        entries = contenders(params)
        for entry in entries:  # compile, and fill the tables
            entry.run()
        seconds = [device_seconds(entry.run, options.rounds) for entry in entries]
        here = rows_of(1, name, "below the threshold, GPU", entries, seconds)
        print(f"{name}: {bandwidths(here, sum(p.numel() * 4 for p in params))}")
        rows += here
    print(f"\n{table(described(rows))}\n")
    for dtype in DTYPES:
        print(f"largest relative error of a norm, {dtype}: {worst_error(dtype):.1e}")
    write_csv(described(rows), HERE / "results-gpu.csv")


if __name__ == "__main__":
    main()
