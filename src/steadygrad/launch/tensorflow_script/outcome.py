"""What the script's clip calls left of a step's gradients, as figures of the step.

Calls by norm are one factor a tensor, which their norms give; what was clamped is read again.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import tensorflow as tf

from steadygrad.launch.placements import Placement
from steadygrad.launch.tensorflow_script.clips import Link, TensorFlowClipCall
from steadygrad.launch.track import CALL, MOST_CALLS
from steadygrad.policies import Policy
from steadygrad.policies.choice import Choice
from steadygrad.policies.stepping import StepGradients, compare, step, unit_of
from steadygrad.stats import GradientStats, combine_norms
from steadygrad.tensorflow import namespace as xp
from steadygrad.tensorflow.engine import Gradient, TensorFlowEngine, merged
from steadygrad.tensorflow.norms import leaf_norms
from steadygrad.tensorflow.rounding import widen
from steadygrad.tensorflow.shadow import unread


class StepColumns(NamedTuple):
    """The figures of a step, 0-d in float64, in the order of `track.STEP` after the norm."""

    threshold: tf.Tensor
    coef: tf.Tensor
    cosine: tf.Tensor
    clipped: tf.Tensor


@dataclass
class CallGroup:
    """One clip call, or a loop of calls for one tensor each.

    Attributes:
        call: the first of them.
        depth: clip calls that came before.
        links: of the step's tensors that passed, by their place.
        passed: how many tensors the calls were given.
    """

    call: TensorFlowClipCall
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
        rows = [tf.stack(row) for row in self._replayed[1][:MOST_CALLS]]
        gap = tf.fill([len(CALL)], tf.constant(float("nan"), tf.float64))
        return [*rows, *[gap] * (MOST_CALLS - len(rows))]

    def outcome(self, stats: GradientStats, then: Policy | None = None) -> StepColumns:
        """What the calls left.

        Args:
            stats: of `before`, divided by the scale.
            then: what the optimizer does after them by itself.

        Returns:
            The figures.
        """
        one = tf.ones_like(stats.total_norm)
        scale = one if self.scale is None else tf.cast(self.scale, tf.float64)
        threshold = tf.reduce_min(tf.stack([limit_of(g.call) / scale for g in self.groups]))
        after = [leaf / scale for leaf in self._replayed[0]]
        if then is not None:
            step_gradients = StepGradients(after, stats.names)
            done = step(TensorFlowEngine(), Choice(then, "propagate"), {}, step_gradients)
            threshold, after = tf.minimum(threshold, done.threshold) * one, done.leaves
        elif self._is_one_factor:
            coef = self._replayed[1][0][2]
            return StepColumns(threshold, coef, one, coef < 1.0)
        return StepColumns(threshold, *self._compared(stats, after, scale))

    @property
    def _is_one_factor(self) -> bool:
        group = self.groups[0]
        whole = len(self.groups) == 1 and len(group.links) == len(self._chains)
        return whole and group.call.function == "clip_by_global_norm"

    def _compared(
        self, stats: GradientStats, after: Sequence[tf.Tensor], scale: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Coefficient, cosine, and whether anything changed."""
        unit = unit_of(xp, stats.norms)
        left, dots, changes = [], [], []
        for before, now in zip(self._wide, after, strict=True):
            was = before / scale
            left.append(norm_of(now) / unit)
            dots.append(tf.math.real(tf.reduce_sum((was / unit) * (now / unit))))
            changes.append(tf.reduce_any(tf.not_equal(was, now)))
        clipped = tf.reduce_any(tf.stack(changes))
        return compare(xp, stats, tf.stack(left), tf.stack(dots), clipped)

    @functools.cached_property
    def _wide(self) -> list[tf.Tensor]:
        """The numbers of `before`, in float64."""
        return [widen(unread(values(merged(gradient)))) for gradient in self.before]

    @functools.cached_property
    def _replayed(self) -> tuple[list[tf.Tensor], list[list[tf.Tensor]]]:
        """What the calls make of `before`, computed here in float64, and `CALL` of each.

        What they returned is not read: TensorFlow joins it with what the optimizer multiplies by
        where nothing else reads it, so that reading it would change the weights' last bits.
        """
        here, figures = list(self._wide), []
        for group in self.groups:
            limit = limit_of(group.call)
            norm = combine_norms(xp, tf.stack([norm_of(here[i]) for i in group.links]), 2.0)
            if group.call.by_value or group.call.per_tensor:
                for i in group.links:
                    here[i] = _changed(group.call, here[i])
                after = combine_norms(xp, tf.stack([norm_of(here[i]) for i in group.links]), 2.0)
                coef = tf.where(norm > 0, after / tf.where(norm > 0, norm, 1.0), 1.0)
            else:
                norm = self._norm_used(group, norm)
                coef = factor(norm, limit)
                for i in group.links:
                    here[i] = here[i] * tf.cast(coef, here[i].dtype)
            figures.append([limit, norm, coef])
        return here, figures

    def _norm_used(self, group: CallGroup, own: tf.Tensor) -> tf.Tensor:
        """The norm by which a call scales; NaN where others have passed calls before it too."""
        call = group.call
        if call.use_norm is not None:
            return tf.reshape(tf.cast(unread(call.use_norm), tf.float64), [])
        if len(call.tensors) == len(group.links):
            return own
        if group.depth:
            return own * float("nan")
        leaves = [unread(values(merged(tensor))) for tensor in call.tensors]
        return combine_norms(xp, leaf_norms(leaves, counts=False)[0], 2.0)


def _changed(call: TensorFlowClipCall, wide: tf.Tensor) -> tf.Tensor:
    """The tensor after one clip call on it."""
    if call.by_value:
        low, high = (tf.cast(unread(tf.convert_to_tensor(b)), wide.dtype) for b in call.bounds)
        return tf.clip_by_value(wide, low, high)
    axes = call.axes
    norm = tf.sqrt(tf.reduce_sum(tf.abs(wide) ** 2, axis=axes, keepdims=axes is not None))
    return wide * tf.cast(factor(norm, limit_of(call)), wide.dtype)


def _groups(chains: Sequence[Sequence[Link]]) -> list[CallGroup]:
    groups: dict[tuple[object, ...], CallGroup] = {}
    tensors_of: dict[tuple[object, ...], set[int]] = defaultdict(set)
    for place, chain in enumerate(chains):
        for depth, link in enumerate(chain):
            key = _key(link.call, depth)
            group = groups.setdefault(key, CallGroup(link.call, depth, {}, 0))
            group.links[place] = link
            tensors_of[key].update(map(id, link.call.tensors))
    for key, group in groups.items():
        group.passed = len(tensors_of[key])
    return sorted(groups.values(), key=lambda group: group.depth)


def _key(call: TensorFlowClipCall, depth: int) -> tuple[object, ...]:
    if not call.per_tensor and not call.by_value:
        return depth, id(call)
    limit = call.static_limit
    return depth, call.function, limit if limit == limit else id(call.limit)


def limit_of(call: TensorFlowClipCall) -> tf.Tensor:
    """A call's threshold, 0-d in float64; the largest where it has several."""
    return tf.reduce_max(tf.abs(tf.cast(unread(tf.convert_to_tensor(call.limit)), tf.float64)))


def norm_of(wide: tf.Tensor) -> tf.Tensor:
    """The 2-norm of a tensor in float64."""
    return tf.sqrt(tf.reduce_sum(tf.abs(wide) ** 2))


def factor(norm: tf.Tensor, limit: tf.Tensor) -> tf.Tensor:
    """What TensorFlow multiplies by: NaN where the norm or the threshold is not finite."""
    over = norm > limit
    shrunk = tf.where(over, limit / tf.where(over, norm, 1.0), tf.ones_like(norm))
    usable = tf.math.is_finite(norm) & tf.math.is_finite(limit)  # TensorFlow: inf * (1 / inf)
    return tf.where(usable, shrunk, tf.constant(float("nan"), tf.float64))


def values(gradient: Gradient) -> tf.Tensor:
    """A gradient as a dense tensor; of a sparse one, the rows that are there."""
    return gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient
