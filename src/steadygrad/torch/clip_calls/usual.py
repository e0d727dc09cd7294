"""Clip calls that are like the one before: a loop that clips does so at every step.

Most loops clip all weights in one place at one threshold. Where such a call stands is then known
from the one before: what is left are the figures.
"""

from __future__ import annotations

import dataclasses
import math
import struct
import sys
import types
from collections.abc import Callable
from operator import attrgetter, is_
from time import perf_counter
from typing import Any, NamedTuple

import torch

from steadygrad import kernels
from steadygrad.kernels import native
from steadygrad.kernels.native import Stamped
from steadygrad.torch.clip_calls.clipcall import Call, failing_after
from steadygrad.torch.clip_calls.clips import (
    ClipCall,
    ClipLog,
    exact_coefficient,
    torch_coefficient,
)
from steadygrad.torch.clip_calls.clocks import Clock, WeightAtCall
from steadygrad.torch.clip_calls.readings import EVERY, GradientReading, Part
from steadygrad.torch.distributed.layout import NOWHERE
from steadygrad.torch.distributed.ownership import FSDP1, spread_of_some
from steadygrad.torch.internals.inlay import Arguments, Visit
from steadygrad.torch.internals.quiet import ClipPattern, ClipTerms
from steadygrad.torch.internals.trying import NOBODY_TRIES

_GRAD = attrgetter("grad")
_FIXED = {int, float, bool, type(None)}
"""Types of what no script can change in place."""
_PLAIN = {torch.Tensor, torch.nn.Parameter}
_FACTS = tuple(
    each.name
    for each in dataclasses.fields(ClipCall)
    if each.name not in ("norm", "coef", "parts", "before", "clocks", "like")
)
MOST_PATTERNS = 16


class Pattern(NamedTuple):
    """A call of the usual kind, for those that follow.

    Attributes:
        exact: as `Call` has it.
        rest: its arguments behind the parameters.
        shared: the clocks of its parameters, one in all.
        facts: what such a call is made of.
    """

    exact: bool
    rest: tuple[object, ...]
    shared: list[Clock]
    facts: dict[str, Any]


class UsualVisit(Visit):
    """One such call, from its start to its end.

    Args:
        arguments: with which it goes on.
        pattern: of the call before it.
        reading: of the gradients before it.
        grads: these.
        over: told of its end, as `UsualCalls.end` is.
    """

    def __init__(
        self,
        arguments: Arguments,
        pattern: Pattern,
        reading: GradientReading,
        grads: list[torch.Tensor],
        over: Over,
    ) -> None:
        self.arguments, self.pattern, self._over = arguments, pattern, over
        self.reading, self.grads = reading, grads

    def returns(self, result: object) -> object:
        self._over(self.pattern, self.reading, self.grads, result)
        return result


Over = Callable[[Pattern, GradientReading, list[torch.Tensor], object], None]


class UsualCalls(Stamped):
    """Calls that clip by norm, as long as each is like the one before on the same parameters.

    Args:
        log: of all calls; it is left as `ClipLog.before` and `ClipLog.after` leave it.

    Example:
        >>> from steadygrad.torch.record.losses import LossMeter
        >>> log = ClipLog(LossMeter())
        >>> weights = [torch.zeros(2)]
        >>> UsualCalls(log).begin(False, weights, (weights, 1.0), print) is None  # the first one
        True
    """

    def __init__(self, log: ClipLog) -> None:
        self._log = log
        self._patterns: dict[tuple[int, ...], Pattern] = {}

    def begin(
        self, exact: bool, parameters: list[Any], arguments: Arguments, over: Over
    ) -> UsualVisit | None:
        """What `ClipLog.before` does for such a call.

        Args:
            exact: as `Call` has it.
            parameters: likewise.
            arguments: likewise.
            over: told of what `end` is told of.

        Returns:
            The call; None, and nothing done, for any other.
        """
        log = self._log
        ids = tuple(map(id, parameters))
        pattern = self._patterns.get(ids)
        if pattern is None or (log.readings and log.has_read_some(set(ids))):
            return None
        if log.clocks.sharing.get(ids) is not pattern.shared:
            return None
        if exact is not pattern.exact or not all(map(is_, arguments[1:], pattern.rest)):
            return None
        clock, now = pattern.shared[0], log.losses.backwards
        if clock.clips or now - clock.step != pattern.facts["backward_since_step"]:
            return None
        if log.losses.scale is not None:
            return None
        if not set(map(type, parameters)) <= _PLAIN:
            return None
        if spread_of_some(parameters)[0] is not NOWHERE:
            return None
        sealed = kernels.seal_gradients(parameters)
        if sealed is None:
            return None
        grads = list(map(_GRAD, parameters))
        reading = GradientReading(parameters, grads, sealed, 2.0)
        log.readings.append(reading)
        clock.clipped_at(now, WeightAtCall.of(parameters[0]))
        return UsualVisit(arguments, pattern, reading, grads, over)

    def end(
        self,
        pattern: Pattern,
        reading: GradientReading,
        grads: list[torch.Tensor],
        result: object,
    ) -> object:
        """What `ClipLog.after` does for such a call.

        Args:
            pattern: of the call before it.
            reading: of the gradients before it.
            grads: these.
            result: what the function has returned.

        Returns:
            The norm that it notes.
        """
        log = self._log
        note = ClipCall(**pattern.facts, like=pattern)
        norm = native.try_number(result)
        if norm is None or not math.isfinite(norm):
            note.parts, note.clocks = [Part(reading, EVERY, grads)], pattern.shared
            log.after(note, result, pattern.exact)
            return note.norm
        coefficient_of = exact_coefficient if pattern.exact else torch_coefficient
        note.norm, note.coef = norm, coefficient_of(note.max_norm, norm)
        reading.factor, reading.threshold = note.coef, note.max_norm
        reading.mark(grads, EVERY)
        log.waiting.append(note)
        return norm

    def learn(self, call: Call) -> None:
        """A call is over that was none of these: those after it may be like it."""
        note, log, ids = call.note, self._log, tuple(map(id, call.parameters))
        # another dict whenever it changes: what C knows is what is in this one
        if ids in self._patterns:
            self._patterns = {key: each for key, each in self._patterns.items() if key != ids}
        if note is None or call.kind != "norm":
            return
        shared = log.clocks.sharing.get(ids)
        if shared is None or len(shared) != 1 or note.with_grad != len(ids):
            return
        if not call.parameters[0].is_cpu:  # C reads nothing there
            return
        if note.norm_type != 2.0 or not set(map(type, call.arguments[1:])) <= _FIXED:
            return
        if note.repeated or note.renewals or note.scale is not None or not note.backward_since_step:
            return
        facts = {name: getattr(note, name) for name in _FACTS}
        latest = list(self._patterns.items())[1 - MOST_PATTERNS :]
        self._patterns = {
            **dict(latest),
            ids: Pattern(call.exact, call.arguments[1:], shared, facts),
        }

    def terms(self, entry: object, over: Over) -> ClipTerms | None:
        """The terms on which C does what `begin` and `end` do; None where it knows no such calls.

        Args:
            entry: has the ``seconds`` spent.
            over: told of the end of a call that left no finite norm.
        """
        log, sparse = self._log, kernels.sparse_seen()
        sharing = log.clocks.sharing
        by_ids = {
            ids: pattern
            for ids, pattern in self._patterns.items()
            if not pattern.exact and sharing.get(ids) is pattern.shared
        }
        lists = {ids: list(ids) for ids in by_ids}
        patterns = tuple(_for_c(ids, pattern, lists) for ids, pattern in by_ids.items())
        if not patterns:
            return None
        return ClipTerms(
            same=(
                (self, "_patterns", self._patterns),
                (log, "clocks", log.clocks),
                (log.clocks, "sharing", sharing),
                sparse,
            ),
            empty=NOBODY_TRIES,
            log=log,
            losses=log.losses,
            entry=entry,
            timer=perf_counter,
            modules=sys.modules,
            flat=FSDP1,
            distributed=_is_distributed,
            generator=types.GeneratorType,
            failing=failing_after,
            reading=GradientReading,
            of_reading=vars(GradientReading((), (), bytearray(8), 2.0)),
            weight=WeightAtCall,
            note=ClipCall,
            over=over,
            sparse=sparse[2],
            patterns=patterns,
        )


def _is_distributed() -> bool:
    return torch.distributed.is_initialized()  # not there in every build of torch


def _for_c(
    ids: tuple[int, ...], pattern: Pattern, lists: dict[tuple[int, ...], list[int]]
) -> ClipPattern:
    max_norm = pattern.facts["max_norm"]
    return ClipPattern(
        pattern=pattern,
        addresses=struct.pack(f"{len(ids)}P", *ids),
        ids=lists[ids],
        others=tuple(each for key, each in lists.items() if set(ids).isdisjoint(key)),
        behind=pattern.rest,
        clock=pattern.shared[0],
        since=pattern.facts["backward_since_step"],
        limit=float(max_norm),
        max_norm=max_norm,
        facts=vars(ClipCall(**pattern.facts, like=pattern)),
    )
