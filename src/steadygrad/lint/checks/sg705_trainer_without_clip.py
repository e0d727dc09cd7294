"""SG705: a trainer whose clipping is switched off."""

from __future__ import annotations

from collections.abc import Iterator

from steadygrad.lint.check import Check, at
from steadygrad.lint.diagnostic import Diagnostic, Severity
from steadygrad.lint.module import Module, argument, number, tail


def find(module: Module) -> Iterator[Diagnostic]:
    if not (module.imports("transformers") or module.imports("trl")):
        return
    for call in module.calls:
        if tail(call.func).endswith(("TrainingArguments", "Config", "Seq2SeqTrainingArguments")):
            limit = argument(call, -1, "max_grad_norm")
            if limit is not None and number(limit) == 0:
                yield at(
                    limit,
                    "SG705",
                    Severity.INFO,
                    "max_grad_norm=0 switches the Trainer's clipping off, and with it the "
                    "grad_norm of every step's log. To log without clipping, use a large value.",
                )


CHECK = Check(
    "SG705",
    "a trainer's clipping switched off",
    proves="max_grad_norm=0 is handed to a Hugging Face trainer's arguments",
    assumes="the norms are of interest",
    find=find,
)
