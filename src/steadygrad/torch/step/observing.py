"""What `steadygrad run` uses of an optimizer's steps: this module and no other of this package."""

from __future__ import annotations

from steadygrad.torch.gradients.outcome import StepOutcome, is_broken
from steadygrad.torch.step.attaching import attach_unheard
from steadygrad.torch.step.clipper import Clipper, Scale, Skip
from steadygrad.torch.step.closures import Arguments as StepArguments
from steadygrad.torch.step.copies import UncopiedHook, unmark_copies
from steadygrad.torch.step.handle import Steady
from steadygrad.torch.step.inner import (
    inner_optimizers,
    is_facade,
    is_stand_in,
    wrapper_without_hooks,
)
from steadygrad.torch.step.naming import describe
from steadygrad.torch.step.observed import ObservingClipper, summed_up
from steadygrad.torch.step.trial import skipping_of

__all__ = [
    "Clipper",
    "ObservingClipper",
    "Scale",
    "Skip",
    "Steady",
    "StepArguments",
    "StepOutcome",
    "UncopiedHook",
    "attach_unheard",
    "describe",
    "inner_optimizers",
    "is_broken",
    "is_facade",
    "is_stand_in",
    "skipping_of",
    "summed_up",
    "unmark_copies",
    "wrapper_without_hooks",
]
