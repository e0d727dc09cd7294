"""SG411: a clip call with an infinite threshold, used to read the norm."""

from __future__ import annotations

from collections.abc import Iterator

from steadygrad.lint.check import Check, at
from steadygrad.lint.diagnostic import Diagnostic, Severity
from steadygrad.lint.events import only_reads
from steadygrad.lint.module import Module, tail


def find(module: Module) -> Iterator[Diagnostic]:
    for call in module.calls:
        if tail(call.func) in ("clip_grad_norm_", "clip_grad_norm") and only_reads(call):
            yield at(
                call,
                "SG411",
                Severity.INFO,
                "An infinite threshold clips nothing, and one inf in a gradient makes every "
                "gradient NaN. To read the norm, use get_total_norm or steadygrad's measure.",
            )


CHECK = Check(
    "SG411",
    "an infinite threshold",
    proves="the threshold is written as inf",
    assumes="nothing",
    find=find,
)
