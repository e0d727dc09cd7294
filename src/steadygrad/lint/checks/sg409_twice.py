"""SG409: clipping the same gradients twice."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from steadygrad.lint.check import Check, at
from steadygrad.lint.diagnostic import Diagnostic, Fix, Severity
from steadygrad.lint.events import CLIPS, Kind, LoopEvent, only_reads
from steadygrad.lint.module import Module, argument, number, tail
from steadygrad.lint.rewriting import remove
from steadygrad.lint.steps import events_at_fault
from steadygrad.lint.tf import is_optax
from steadygrad.lint.traces import Trace


def _faulty(trace: Trace, place: int) -> bool | None:
    """Another clip of the same parameters between the last backward or step and this one."""
    event = trace.events[place]
    if not event.subject:
        return None
    for earlier in reversed(trace.events[:place]):
        if earlier.kind in (Kind.BACKWARD, Kind.STEP, Kind.UNSCALE, Kind.WRITE, Kind.CLEAR):
            return False
        if earlier.kind is Kind.CLIP and _same(earlier, event):
            return True
    return False


def _same(one: LoopEvent, other: LoopEvent) -> bool:
    calls = (one.node, other.node)
    if one.subject != other.subject or one.node is other.node:
        return False
    return not any(only_reads(call) for call in calls if isinstance(call, ast.Call))


def find(module: Module) -> Iterator[Diagnostic]:
    for _, event in events_at_fault(module, Kind.CLIP, _faulty):
        yield at(
            event.call,
            "SG409",
            Severity.WARNING,
            f"The gradients of `{event.subject}` are clipped a second time: the threshold that "
            "acts is not the one that either call says. Keep one.",
            _fix(module, event),
        )
    yield from _optax(module)
    yield from _trainers(module)


def _fix(module: Module, event: LoopEvent) -> Fix | None:
    statement = module.statement(event.node)
    plain = isinstance(statement, ast.Expr) and statement.value is event.node
    return remove(module, statement, "remove the second clip") if statement and plain else None


def _optax(module: Module) -> Iterator[Diagnostic]:
    for call in module.calls:
        if is_optax(module, call, "chain"):
            links = [link for link in call.args if isinstance(link, ast.Call)]
            clips = [link for link in links if is_optax(module, link, "clip_by_global_norm")]
            for second in clips[1:]:
                yield at(
                    second,
                    "SG409",
                    Severity.WARNING,
                    "The chain clips by the global norm twice: only the smaller threshold acts. "
                    "Keep one.",
                )


def _trainers(module: Module) -> Iterator[Diagnostic]:
    """A hand-written clip beside one that the trainer was asked for."""
    asked = _asked_of_lightning(module) or _asked_of_deepspeed(module)
    if not asked:
        return
    for call in module.calls:
        if tail(call.func) in CLIPS and not only_reads(call) and _in_a_hook(module, call, asked):
            yield at(
                call,
                "SG409",
                Severity.WARNING,
                f"Gradients are clipped here, and once more by {asked}. Keep one.",
            )


def _asked_of_lightning(module: Module) -> str:
    if not (module.imports("lightning") or module.imports("pytorch_lightning")):
        return ""
    for call in module.calls:
        if tail(call.func) == "Trainer":
            limit = argument(call, -1, "gradient_clip_val")
            if (number(limit) or 0) > 0:
                return "Trainer(gradient_clip_val=...)"
    return ""


def _asked_of_deepspeed(module: Module) -> str:
    if not any(module.full_name(c.func) == "deepspeed.initialize" for c in module.calls):
        return ""
    for node in module.nodes(ast.Dict):
        for key, value in zip(node.keys, node.values, strict=True):
            named = isinstance(key, ast.Constant) and key.value == "gradient_clipping"
            if named and (number(value) or 0) > 0:
                return 'DeepSpeed\'s "gradient_clipping"'
    return ""


def _in_a_hook(module: Module, call: ast.Call, asked: str) -> bool:
    if asked.startswith("DeepSpeed"):
        return True
    if "automatic_optimization" in module.text:
        return False
    home = module.function(call)
    hooks = ("on_before_optimizer_step", "on_after_backward", "optimizer_step")
    return not isinstance(home, ast.Module) and home.name in hooks


CHECK = Check(
    "SG409",
    "clipping twice",
    proves="two clips of the same parameters stand between a backward and the step, in every way "
    "through the loop; or a chain, or a trainer and a hook, clip twice",
    assumes="neither call is there to read the norm alone; an infinite threshold counts as that",
    find=find,
    fixable=True,
)
