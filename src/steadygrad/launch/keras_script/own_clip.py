"""Keras' own clipping: the three keywords of its optimizers, as the policies that they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from steadygrad.policies import Policy
from steadygrad.policies.specs import parse

SPECS = {"clipnorm": "tensor-norm", "global_clipnorm": "norm", "clipvalue": "value"}
"""Keyword to spec, in the order in which Keras asks for them: the first that is set acts."""


class Optimizer(Protocol):
    """What is asked of a Keras optimizer."""

    clipnorm: float | None
    global_clipnorm: float | None
    clipvalue: float | None


@dataclass(frozen=True)
class OwnClip:
    """What an optimizer clips by.

    Attributes:
        keyword: one of `SPECS`.
        value: the threshold.
        policy: what does the same.
    """

    keyword: str
    value: float
    policy: Policy


def own_clip(optimizer: Optimizer) -> OwnClip | None:
    """What an optimizer clips by itself.

    Args:
        optimizer: any of Keras'.

    Returns:
        It; None where it does not clip.

    Example:
        >>> import types
        >>> clips = types.SimpleNamespace(clipnorm=None, global_clipnorm=2.0, clipvalue=None)
        >>> own_clip(clips).policy
        ClipNorm(max_norm=2.0, p=2.0)
    """
    for keyword, spec in SPECS.items():
        value = getattr(optimizer, keyword, None)
        if value and value > 0:
            return OwnClip(keyword, float(value), parse(f"{spec}:{float(value)}"))
    return None
