"""The one front door from what a user types to what is done at every step.

PyTorch, Keras, JAX and the observers of `steadygrad run` all come through `resolve`, so that
a default is decided in one place and means the same everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from steadygrad.errors import UsageError
from steadygrad.policies.base import Policy
from steadygrad.policies.groups import Groups
from steadygrad.policies.methods.none import NoClip
from steadygrad.policies.specs import parse
from steadygrad.stats import GradientStats
from steadygrad.vocabulary import ON_NONFINITE, OnNonfinite

Clip = str | Policy | Mapping[str, "str | Policy"]
"""How a user says what to clip: a spec, a policy, or ``{name pattern: either}``."""


@dataclass(frozen=True)
class Choice:
    """What to do with the gradients of one optimizer.

    Attributes:
        policy: how to clip.
        on_nonfinite: one of `ON_NONFINITE`.
    """

    policy: Policy
    on_nonfinite: OnNonfinite

    @property
    def only_observes(self) -> bool:
        """Whether no gradient is ever changed and no step ever dropped."""
        return self.on_nonfinite == "propagate" and isinstance(self.policy, NoClip)

    @property
    def may_skip(self) -> bool:
        """Whether a step may ever be dropped."""
        # `zero` repairs elements, and can but drop a step whose finite ones have no finite norm
        return self.on_nonfinite in ("skip", "zero") or skips_by_itself(self.policy)


def resolve(clip: Clip, on_nonfinite: str | None = None, optimizer: str = "") -> Choice:
    """What the arguments of `attach`, `clip` or the command line mean for one optimizer.

    Args:
        clip: a spec, a policy, or ``{name pattern: either}``.
        on_nonfinite: one of `ON_NONFINITE`; None is ``skip``, or ``propagate`` where the
            policy is ``none``: observing changes nothing.
        optimizer: class name of the optimizer, which groups may name; empty where there is none.

    Returns:
        The policy for that optimizer, and what to do with a non-finite step.

    Raises:
        UsageError: ``clip`` is none of the three, or ``on_nonfinite`` is another word.
        SpecError: a spec that cannot be read.

    Example:
        >>> resolve("norm:2.0")
        Choice(policy=ClipNorm(max_norm=2.0, p=2.0), on_nonfinite='skip')
        >>> resolve({"@Muon": "none", "*": "norm:1.0"}, optimizer="Muon").on_nonfinite
        'propagate'
    """
    policy = policy_of(clip).for_optimizer(optimizer)
    if on_nonfinite is None:
        return Choice(policy, "propagate" if isinstance(policy, NoClip) else "skip")
    if on_nonfinite not in ON_NONFINITE:
        raise UsageError(
            f"on_nonfinite must be one of {', '.join(ON_NONFINITE)}, got {on_nonfinite!r}"
        )
    return Choice(policy, on_nonfinite)


def policy_of(clip: Clip) -> Policy:
    """The policy that a spec, a policy or a mapping of patterns means.

    Args:
        clip: what the user typed.

    Returns:
        The policy.

    Raises:
        UsageError: it is none of the three.
        SpecError: a spec that cannot be read.

    Example:
        >>> policy_of("norm:2.0")
        ClipNorm(max_norm=2.0, p=2.0)
    """
    if isinstance(clip, Policy):
        return clip
    if isinstance(clip, str):
        return parse(clip)
    if isinstance(clip, Mapping):
        return Groups.of(clip)
    raise UsageError(
        f"clip must be a spec such as 'norm:1.0', a policy, or {{pattern: spec}}; got {clip!r}"
    )


def skips_by_itself(policy: Policy) -> bool:
    """Whether a policy ever drops steps whose gradients are finite.

    Example:
        >>> skips_by_itself(parse("norm:1.0")), skips_by_itself(parse("skip"))
        (False, True)
    """
    # here, not above: `steadygrad run --clip` reads a spec before a script may load NumPy
    import numpy as np

    from steadygrad.policies.in_numpy import NUMPY

    one, none = np.ones(1), np.zeros(1, np.int64)
    stats = GradientStats(("x",), one, one, none, none, (1,), one[0], policy.norm_type)
    state = policy.init(NUMPY, stats.names, np.float64, np.int64)
    return policy.decide(NUMPY, state, stats)[1].skip is not False
