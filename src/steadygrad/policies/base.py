"""The contract of a clipping method: pure arithmetic on GradientStats.

A policy never sees a framework. It is given an array namespace `xp` and must
not branch in Python on array values, so that one implementation runs eagerly in
NumPy, on a GPU without host synchronisation, under `jax.jit` and inside
`tf.function`. Of `xp` it may use the names in `NAMESPACE` (TensorFlow is served
by a shim with exactly those) and the operators.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

from steadygrad.errors import SpecError
from steadygrad.stats import GradientStats

if TYPE_CHECKING:
    from steadygrad.typing import Array, DType, Namespace, Number

State: TypeAlias = "dict[str, Array]"
"""A policy's memory: a flat dict of arrays, so that any checkpoint format holds it."""

_NAMES = """
    abs all any arange asarray astype clip concat exp float32 floor full full_like isfinite isnan
    log max maximum mean min minimum ones ones_like searchsorted sign sort sqrt stack sum take
    where zeros zeros_like logical_and logical_or logical_not
"""
NAMESPACE = tuple(_NAMES.split())
"""What policies use of an array namespace."""


Skip: TypeAlias = "Array | Literal[False]"
"""0-d bool, or plain False where nothing would be gained from an array to be read."""


@dataclass(frozen=True)
class Decision:
    """What to do with the gradients of this step.

    Attributes:
        threshold: the `max_norm` (or `clip_value`) in force, 0-d; inf where there is none.
        coef: what gradients are multiplied by, in (0, 1]: 0-d, or ``[tensors]``.
        skip: 0-d bool, or False: drop the step whole.
    """

    threshold: Array
    coef: Array
    skip: Skip = False


@dataclass(frozen=True)
class Policy:
    """Base of every clipping method; subclasses are frozen dataclasses.

    A subclass names itself with `name` (the word of its spec), lists its
    parameters as fields (the first is the one that follows the colon in a spec),
    gives `examples` of its spec, and implements `decide`, plus `init` where it has a
    memory. It registers itself by being defined in a module of
    `steadygrad.policies.methods`.

    Attributes:
        name: the word of its spec; empty for what combines policies.
        examples: specs on which the conformance suite runs it, each acting within 90 steps.
    """

    name: ClassVar[str] = ""
    examples: ClassVar[tuple[str, ...]] = ()

    @property
    def elementwise(self) -> bool:
        """True where `transform` changes single elements; `decide` still gives the threshold."""
        return False

    @property
    def needs(self) -> frozenset[str]:
        """What `transform` reads beside the gradient: ``weight``, ``second_moment``, ``step``."""
        return frozenset()

    @property
    def per_tensor(self) -> frozenset[str]:
        """State keys whose first axis counts tensors: they grow when parameters are added."""
        return frozenset()

    def for_tensor(self, name: str) -> Policy:
        """The policy that governs one tensor: itself, save for groups."""
        return self

    def for_optimizer(self, class_name: str) -> Policy:
        """The policy for an optimizer of this class: itself, save for groups that name classes."""
        return self

    @property
    def usual_clip_rate(self) -> float:
        """Share of steps that may be clipped without anything being wrong: 1 by design."""
        return 0.5

    @property
    def norm_type(self) -> float:
        """The p of the norm that `decide` wants measured."""
        return 2.0

    def init(
        self, xp: Namespace, names: tuple[str, ...], float_dtype: DType, int_dtype: DType
    ) -> State:
        """The state before the first step.

        Args:
            xp: array namespace.
            names: names of the tensors that will be measured, in order.
            float_dtype: dtype for figures.
            int_dtype: dtype for counters.

        Returns:
            A flat dict of arrays of `xp`.
        """
        return {}

    def decide(self, xp: Namespace, state: State, stats: GradientStats) -> tuple[State, Decision]:
        """Decide one step; pure.

        Args:
            xp: array namespace of ``state`` and ``stats``.
            state: as `init` or the last call returned it; not modified.
            stats: this step's figures. Non-finite ones must not enter the state.

        Returns:
            The next state and the decision.
        """
        raise NotImplementedError

    def transform(
        self,
        xp: Namespace,
        grad: Array,
        *,
        weight: Array | None = None,
        second_moment: Array | None = None,
        step: Number | None = None,
    ) -> Array:
        """One tensor's gradient after an elementwise method; pure.

        Args:
            xp: array namespace of the arrays.
            grad: a gradient of any shape; finite.
            weight: the parameter, where `needs` holds ``weight``.
            second_moment: the optimizer's running mean of squares (None before its
                first step), where `needs` holds ``second_moment``.
            step: how many gradients that running mean has seen, a number or 0-d, where
                `needs` holds ``step``.

        Returns:
            An array of the shape and dtype of ``grad``.
        """
        raise NotImplementedError

    def touches(self, xp: Namespace, stats: GradientStats) -> Array:
        """Which tensors `transform` could change, ``[tensors]`` bool: the others are left alone."""
        return xp.ones_like(stats.max_abs) > 0

    def spec(self) -> str:
        """The spec string that makes this policy again: ``parse(p.spec()) == p``."""
        parts: list[str] = []
        for index, field in enumerate(dataclasses.fields(self)):
            value = getattr(self, field.name)
            default = field.default
            if index == 0 and default is dataclasses.MISSING:
                parts.insert(0, spec_value(value))
            elif value != default:
                key = field.metadata.get("spec", field.name)
                parts.append(f"{key}={spec_value(value)}")
        return f"{self.name}:{','.join(parts)}" if parts else self.name


def spec_value(value: object) -> str:
    """A field's value as a spec writes it.

    Example:
        >>> spec_value(1.0), spec_value(float("inf")), spec_value(True)
        ('1.0', 'inf', 'true')
    """
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)


def coefficient(xp: Namespace, norm: Array, max_norm: Number) -> Array:
    """``min(1, max_norm / norm)``, with no epsilon.

    Exactly 1 at and below the threshold, and where the norm is not finite: a
    broken gradient is dealt with by `on_nonfinite`, never by scaling.

    Args:
        xp: array namespace.
        norm: norms, any shape.
        max_norm: threshold, a float or an array that broadcasts with ``norm``.

    Returns:
        The coefficients, in the shape of ``norm``.

    Example:
        >>> import numpy as np
        >>> coefficient(np, np.array([5.0, 10.0, np.nan]), 5.0)
        array([1. , 0.5, 1. ])
    """
    if isinstance(norm, float) and isinstance(max_norm, float):  # NumPy's are: nothing traced
        clips = math.isfinite(norm) and norm > max_norm
        return type(norm)(max_norm / norm if clips else 1.0)
    over = xp.isfinite(norm) & (norm > max_norm)
    one = xp.ones_like(norm)
    return xp.where(over, max_norm / xp.where(over, norm, one), one)


def no_threshold(xp: Namespace, stats: GradientStats) -> Decision:
    """The decision of an elementwise method: no threshold on the norm (inf), coefficient 1."""
    one = xp.ones_like(stats.total_norm)
    return Decision(one * float("inf"), one)


def full_like(xp: Namespace, norm: Array, value: float) -> Array:
    """``value`` in the shape, dtype and place of ``norm``."""
    if isinstance(norm, float):  # as in `coefficient`
        return type(norm)(value)
    return xp.full_like(norm, value)


def constant(xp: Namespace, values: Sequence[float], like: Array) -> Array:
    """``values`` as an array of ``xp`` on the device of ``like``.

    Only torch refuses to mix devices; the others place constants themselves.
    """
    if type(like).__module__.startswith("torch"):
        return xp.asarray(values, device=like.device)  # type: ignore[call-arg]
    return xp.asarray(values)


def require_positive(policy: Policy, *fields: str) -> None:
    """Refuse a policy whose named fields are not numbers over 0 (inf is allowed).

    Raises:
        SpecError: says which field, what it was, and what to type.
    """
    for field in fields:
        value = getattr(policy, field)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not (number and value > 0):
            raise SpecError(
                f"{type(policy).__name__}: {field} must be a number over 0, got {value!r}; "
                f"for example {field}=1.0 (to leave gradients alone, use the spec 'none')"
            )


def require_norm_type(owner: str, value: float) -> None:
    """Refuse a norm whose p is under 0.5.

    Args:
        owner: whose norm it is: a policy's class, or a function.
        value: p.

    Raises:
        SpecError: with the reason.
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (number and value >= 0.5):
        raise SpecError(
            f"{owner}: norm_type must be a number >= 0.5 or inf, got {value!r}: "
            "for smaller p the 'norm' of a large model is beyond any float. Type norm_type=2.0"
        )
