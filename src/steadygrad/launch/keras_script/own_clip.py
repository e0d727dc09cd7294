"""Keras' own clipping: the three keywords of its optimizers, as the policies that they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from steadygrad.launch.placements import Placement
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
        keyword: one of `SPECS`; another name where the script clips in front of the optimizer.
        value: the threshold.
        policy: what does the same.
    """

    keyword: str
    value: float
    policy: Policy

    def placement(self, tensors: int, depth: int) -> Placement:
        """Where it stands: in the optimizer, over all that it is given.

        Args:
            tensors: how many gradients the step has.
            depth: the script's own clip calls before.

        Returns:
            The placement.
        """
        return Placement(
            function=self.keyword,
            tensors=tensors,
            passed=tensors,
            of_tensors=tensors,
            by_value=self.policy.elementwise,
            per_tensor=self.policy.name == "tensor-norm",
            depth=depth,
            own=self.keyword in SPECS,
            max_norm=self.value,
        )


def own_clip(optimizer: object) -> OwnClip | None:
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


KINDS = {"norm": "norm", "tensor": "tensor-norm", "value": "value"}
"""What the script's own code clips by, to spec."""


def by_hand(kind: str, limit: float) -> OwnClip:
    """What the script's own code clips by.

    Args:
        kind: one of `KINDS`.
        limit: the threshold.
    """
    return OwnClip("by hand", limit, parse(f"{KINDS[kind]}:{limit}"))
