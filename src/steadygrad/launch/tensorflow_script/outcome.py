"""What the script's clip calls left of a step's gradients, as figures of the step.

Calls by norm are one factor a tensor, which their norms give; what was clamped is read again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import tensorflow as tf

from steadygrad.launch.placements import Placement
from steadygrad.launch.tensorflow_script.clips import ClipCall, Gradient, Link
from steadygrad.launch.track import CALL, MOST_CALLS
from steadygrad.policies import Policy
from steadygrad.policies.stepping import compare, step, unit_of
from steadygrad.stats import GradientStats, combine_norms
from steadygrad.tensorflow import namespace as xp
from steadygrad.tensorflow.engine import TensorFlowEngine, merged
from steadygrad.tensorflow.norms import leaf_norms
from steadygrad.tensorflow.rounding import widen


class Outcome(NamedTuple):
    """The figures of a step, 0-d in float64, in the order of `track.STEP` after the norm."""

    threshold: tf.Tensor
    coef: tf.Tensor
    cosine: tf.Tensor
    clipped: tf.Tensor


@dataclass
class Group:
    """One clip call, or a loop of calls for one tensor each.

    Attributes:
        call: the first of them.
        depth: clip calls that came before.
        links: of the step's tensors that passed, by their place.
        passed: how many tensors the calls were given.
    """

    call: ClipCall
    depth: int
    links: dict[int, Link]
    passed: int


class Clipped:
    """The gradients of one step, of which some have passed clip calls.

    Args:
        chains: the calls that each of them has passed, the first one first.
        applied: what the step was given.
        divided_by: the loss scale that the step divides by, or None.
    """

    def __init__(
        self,
        chains: Sequence[Sequence[Link]],
        applied: Sequence[Gradient],
        divided_by: float | tf.Tensor | None,
    ) -> None:
        self._chains, self._applied = chains, applied
        self.scale = divided_by
        self.groups = _groups(chains)

    @property
    def before(self) -> list[Gradient]:
        """The gradients as they were before any call."""
        pairs = zip(self._chains, self._applied, strict=True)
        return [chain[0].before if chain else gradient for chain, gradient in pairs]

    def placements(self) -> list[Placement]:
        """Where the calls stand, in the order of `figures`."""
        return [
            Placement(
                function=f"tf.{group.call.function}",
                tensors=len(group.links),
                passed=group.passed,
                of_tensors=len(self._chains),
                by_value=group.call.by_value,
                per_tensor=group.call.per_tensor,
                depth=group.depth,
                scaled=self.scale is not None,
            )
            for group in self.groups
        ]

    def figures(self) -> list[tf.Tensor]:
        """`CALL` of each of the first `MOST_CALLS` calls, then NaN."""
        rows = [tf.stack(self._figures(group)) for group in self.groups[:MOST_CALLS]]
        gap = tf.fill([len(CALL)], tf.constant(float("nan"), tf.float64))
        return [*rows, *[gap] * (MOST_CALLS - len(rows))]

    def _figures(self, group: Group) -> list[tf.Tensor]:
        limit = limit_of(group.call)
        if not group.call.per_tensor and not group.call.by_value:
            norm = norm_used(group.call)
            return [limit, norm, factor(norm, limit)]
        links = list(group.links.values())
        before, after = (
            combine_norms(xp, norms_of([getattr(link, side) for link in links]), 2.0)
            for side in ("before", "after")
        )
        positive = before > 0
        ratio = tf.where(positive, after / tf.where(positive, before, 1.0), tf.ones_like(before))
        return [limit, before, ratio]

    def outcome(self, stats: GradientStats, then: Policy | None = None) -> Outcome:
        """What the calls left.

        Args:
            stats: of `before`, divided by the scale.
            then: what the optimizer does after them by itself.

        Returns:
            The figures.
        """
        one = tf.ones_like(stats.total_norm)
        scale = one if self.scale is None else tf.cast(self.scale, tf.float64)
        limits = [limit_of(group.call) / scale for group in self.groups]
        threshold = tf.reduce_min(tf.stack(limits))
        if then is not None:
            return self._followed(stats, scale, threshold, then)
        whole = len(self.groups) == 1 and len(self.groups[0].links) == len(self._chains)
        if whole and self.groups[0].call.function == "clip_by_global_norm":
            coef = factor(norm_used(self.groups[0].call), limit_of(self.groups[0].call))
            return Outcome(threshold, coef, one, coef < 1.0)
        every = [bool(chain) for chain in self._chains]
        return Outcome(threshold, *self._compared(stats, scale, self._applied, every))

    def _followed(
        self, stats: GradientStats, scale: tf.Tensor, threshold: tf.Tensor, then: Policy
    ) -> Outcome:
        """What a policy of the optimizer's own leaves of what the calls left."""
        leaves = [values(merged(gradient)) for gradient in self._applied]
        leaves = [leaf / tf.cast(scale, leaf.dtype) for leaf in leaves]
        done = step(TensorFlowEngine(), then, "propagate", {}, leaves, stats.names, {})
        least = tf.minimum(threshold, done.threshold)
        one = tf.ones_like(scale)
        # the leaves are divided by the scale already; what they are compared with is not
        scaled = [leaf * tf.cast(scale, leaf.dtype) for leaf in done.leaves]
        return Outcome(least * one, *self._compared(stats, scale, scaled, [True] * len(leaves)))

    def _compared(
        self,
        stats: GradientStats,
        scale: tf.Tensor,
        applied: Sequence[Gradient],
        touched: Sequence[bool],
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Coefficient, cosine, and whether anything changed, from the tensors themselves."""
        unit = unit_of(xp, stats.norms)
        left, dots, changes = [], [], []
        rows = zip(self.before, applied, tf.unstack(stats.norms), touched, strict=True)
        for before, after, norm, may_differ in rows:
            if not may_differ:
                left.append(norm / unit)
                dots.append((norm / unit) ** 2)
                continue
            was, now = (widen(values(merged(g))) / scale for g in (before, after))
            left.append(norms_of([after])[0] / scale / unit)
            dots.append(
                tf.cast(tf.math.real(tf.reduce_sum((was / unit) * (now / unit))), tf.float64)
            )
            changes.append(tf.reduce_any(was != now))
        clipped = tf.reduce_any(tf.stack(changes))
        return compare(xp, stats, tf.stack(left), tf.stack(dots), clipped)


def _groups(chains: Sequence[Sequence[Link]]) -> list[Group]:
    groups: dict[tuple[object, ...], Group] = {}
    given: dict[tuple[object, ...], set[int]] = defaultdict(set)
    for place, chain in enumerate(chains):
        for depth, link in enumerate(chain):
            key = _key(link.call, depth)
            group = groups.setdefault(key, Group(link.call, depth, {}, 0))
            group.links[place] = link
            given[key].update(map(id, link.call.tensors))
    for key, group in groups.items():
        group.passed = len(given[key])
    return sorted(groups.values(), key=lambda group: group.depth)


def _key(call: ClipCall, depth: int) -> tuple[object, ...]:
    if not call.per_tensor and not call.by_value:
        return depth, id(call)
    limit = call.static_limit
    return depth, call.function, limit if limit == limit else id(call.limit)


def limit_of(call: ClipCall) -> tf.Tensor:
    """A call's threshold, 0-d in float64; the largest where it has several."""
    return tf.reduce_max(tf.abs(tf.cast(tf.convert_to_tensor(call.limit), tf.float64)))


def norm_used(call: ClipCall) -> tf.Tensor:
    """The norm by which a call scales, in float64."""
    if call.use_norm is not None:
        return tf.reshape(tf.cast(call.use_norm, tf.float64), [])
    return combine_norms(xp, norms_of(call.tensors), 2.0)


def norms_of(gradients: Sequence[Gradient]) -> tf.Tensor:
    """The 2-norm of each, in float64."""
    return leaf_norms([values(merged(gradient)) for gradient in gradients], counts=False)[0]


def factor(norm: tf.Tensor, limit: tf.Tensor) -> tf.Tensor:
    """What TensorFlow multiplies by: NaN where the norm or the threshold is not finite."""
    over = norm > limit
    shrunk = tf.where(over, limit / tf.where(over, norm, 1.0), tf.ones_like(norm))
    usable = tf.math.is_finite(norm) & tf.math.is_finite(limit)  # TensorFlow: inf * (1 / inf)
    return tf.where(usable, shrunk, tf.constant(float("nan"), tf.float64))


def values(gradient: Gradient) -> tf.Tensor:
    """The numbers of a gradient: those of its rows where it is sparse."""
    return gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient
