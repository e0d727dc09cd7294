"""The table of the README: what torch's clipping and ours do to the same gradients.

Run: python -m benchmarks.faults
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
import torch

import steadygrad.torch as sg

Clip = Callable[[Iterable[torch.nn.Parameter], float], torch.Tensor]


def parameter(grad: torch.Tensor) -> torch.nn.Parameter:
    """A parameter that holds this gradient."""
    made = torch.nn.Parameter(torch.zeros_like(grad))
    made.grad = grad.clone()
    return made


def huge(clip: Clip) -> str:
    """Finite float32 gradients whose squares overflow."""
    p = parameter(torch.full((4,), 1e20))
    norm = clip([p], 1.0)
    return f"norm {float(norm):.3g}, first element {float(p.grad[0]):.3g}"


def one_inf(clip: Clip) -> str:
    """One inf among ones, clipped at infinity in order to log the norm."""
    p = parameter(torch.tensor([1.0, math.inf, 1.0]))
    norm = clip([p], math.inf)
    return f"norm {float(norm):.3g}, gradient {p.grad.tolist()}"


def many(clip: Clip) -> str:
    """38.6 million normals in one tensor."""
    generator = torch.Generator().manual_seed(0)
    grad = torch.randn(38_600_000, generator=generator)
    true = math.sqrt(float(np.square(grad.numpy(), dtype=np.float64).sum()))
    p = parameter(grad)
    norm = float(clip([p], 1.0))
    left = math.sqrt(float(np.square(p.grad.numpy(), dtype=np.float64).sum()))
    return f"norm off by {abs(norm / true - 1):.1e}, norm after clipping {left:.6f}"


def below(clip: Clip) -> str:
    """Gradients below the threshold: is memory written?"""
    p = parameter(torch.ones(3))
    version = p.grad._version
    clip([p], 5.0)
    return "written" if p.grad._version > version else "not written"


def main() -> None:
    """Print every case twice."""
    for case in (huge, one_inf, many, below):
        print(case.__doc__)
        print(f"  torch {torch.__version__}:  {case(torch.nn.utils.clip_grad_norm_)}")
        print(f"  steadygrad:    {case(sg.clip_grad_norm_)}")


if __name__ == "__main__":
    main()
