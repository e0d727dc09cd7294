"""The seam between gradients and figures: one read, and one exact multiplication.

Everything above this package works on what `read` returns and writes gradients
through `scale_` alone, so a faster form is added here without a change elsewhere.
All forms keep one contract and pass one conformance suite: `reference` is plain
torch and serves every tensor, `c` is one pass over CPU tensors (`c-avx2`
and the like ask for one instruction set), `triton` one over
tensors on a GPU. "auto" gives each tensor to the fastest form that can serve it.
"""

from __future__ import annotations

from steadygrad.kernels.auto import read, scale_, seal, seal_gradients, sparse_seen
from steadygrad.kernels.reference import Read

__all__ = ["Read", "read", "scale_", "seal", "seal_gradients", "sparse_seen"]
