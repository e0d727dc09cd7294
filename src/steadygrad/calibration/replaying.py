"""`replay`: what a policy would have done to a recorded run.

The recorded norms are taken as given: a run that had really been clipped that
way would have gone on differently. That is the question's limit, not a defect
of the answer, and the reason why `steadygrad compare` exists.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from steadygrad.calibration.source import open_steps, recorded_norm_type
from steadygrad.errors import UsageError
from steadygrad.policies import Policy, parse
from steadygrad.policies.in_numpy import NUMPY, scalar
from steadygrad.robust import Floats
from steadygrad.stats import GradientStats, combine_norms
from steadygrad.text import factor, percent

if TYPE_CHECKING:
    from steadygrad.runlog import Run
    from steadygrad.runlog.encode import Rows
    from steadygrad.typing import Array

INF = float("inf")


@dataclass(frozen=True)
class Replay:
    """A policy's decisions on a recorded run, one row a step.

    Attributes:
        spec: the policy.
        steps: step numbers, ``[steps]``.
        norms: recorded total norms before clipping, ``[steps]``.
        thresholds: the `max_norm` in force, ``[steps]``; inf where none.
        coefs: norm after over norm before, ``[steps]``; NaN where a method changes single
            elements, whose effect norms alone do not tell.
        actions: ``none``, ``clip`` or ``skip``, ``[steps]``; steps that are not finite are skipped.
        clip_rate: share of steps clipped, 0 to 1.
        skip_rate: share of steps skipped, 0 to 1.
        unmeasured: number of steps for which the run holds no figures by tensor; there a
            method that looks at single tensors leaves everything as it was.
    """

    spec: str
    steps: NDArray[np.int64]
    norms: NDArray[np.float64]
    thresholds: NDArray[np.float64]
    coefs: NDArray[np.float64]
    actions: NDArray[np.str_]
    clip_rate: float
    skip_rate: float
    unmeasured: int

    @property
    def sentence(self) -> str:
        """The replay in one sentence."""
        text = f"{self.spec} would have clipped {percent(self.clip_rate)} of the steps"
        finite = np.isfinite(self.norms)
        skipped = int(((self.actions == "skip") & finite).sum())
        broken = int((~finite).sum())
        text += f", skipped {skipped} spike{'s' * (skipped != 1)}" if skipped else ""
        text += f", skipped {broken} non-finite" if broken else ""
        factors = np.where(np.isfinite(self.coefs), 1 / self.coefs, 1.0)
        if factors.size and factors.max() > 1:
            worst = int(np.argmax(factors))
            text += f", the spike at {self.steps[worst]} by a factor of {factor(factors[worst])}"
        return text

    def to_dict(self) -> dict[str, object]:
        """The summary as JSON holds it."""
        return {
            "spec": self.spec,
            "clip_rate": self.clip_rate,
            "skip_rate": self.skip_rate,
            "unmeasured": self.unmeasured,
            "sentence": self.sentence,
        }


def replay(
    run: Run | str | os.PathLike[str], policy: Policy | str, *, optimizer: int | None = None
) -> Replay:
    """Apply a policy to the norms of a recorded run.

    Args:
        run: a run, or the path of a run file.
        policy: a policy or its spec.
        optimizer: number of the optimizer; by default the one with the most steps.

    Returns:
        The decisions; `Replay.sentence` sums them up.

    Raises:
        UsageError: the policy wants a p-norm that the run does not hold, or there is no
            such optimizer.
        SpecError: a spec that cannot be read.

    Example:
        >>> import numpy as np
        >>> from steadygrad.runlog import Run
        >>> from steadygrad.runlog.records import STEP_DTYPE
        >>> steps = np.zeros(100, STEP_DTYPE).view(np.recarray)
        >>> steps.step, steps.norm = np.arange(100), 1.0
        >>> steps.norm[40] = 14.0
        >>> replay(Run.from_arrays(steps=steps), "norm:2.0").sentence
        'norm:2.0 would have clipped 1.0 % of the steps, the spike at 40 by a factor of 7'
    """
    policy = parse(policy) if isinstance(policy, str) else policy
    recorded, number, rows, where = open_steps(run, optimizer)
    thresholds, coefs = np.full(rows.size, INF), np.ones(rows.size)
    actions = np.full(rows.size, "none", "U4")
    unmeasured, state = 0, None
    for i, stats in enumerate(_stats(recorded, number, rows, where, policy)):
        if state is None:
            state = policy.init(NUMPY, stats.names, np.float64, np.int64)
        unmeasured += bool(np.isnan(stats.norms).all() and np.isfinite(stats.total_norm))
        with np.errstate(all="ignore"):
            state, decision = policy.decide(NUMPY, state, stats)
            touched = policy.elementwise and bool(np.any(policy.touches(NUMPY, stats)))
        thresholds[i] = decision.threshold
        coefs[i] = np.nan if touched else _applied(decision.coef, stats)
        broken = not np.isfinite(stats.total_norm)
        if bool(decision.skip) or broken:
            actions[i], coefs[i] = "skip", 1.0
        elif touched or coefs[i] < 1:
            actions[i] = "clip"
    return Replay(
        spec=policy.spec(),
        steps=np.asarray(rows["step"], dtype=np.int64),
        norms=np.asarray(rows["norm"], dtype=np.float64),
        thresholds=thresholds,
        coefs=coefs,
        actions=actions,
        clip_rate=_share(actions == "clip"),
        skip_rate=_share(actions == "skip"),
        unmeasured=unmeasured,
    )


def _share(flags: NDArray[np.bool_]) -> float:
    return float(flags.mean()) if flags.size else 0.0


def _applied(coef: Array | float, stats: GradientStats) -> float:
    """Norm after over norm before."""
    if np.ndim(coef) == 0:
        return float(coef)
    if not np.all(np.isfinite(stats.norms)) or not stats.total_norm > 0:
        return 1.0
    if np.all(coef == 1):
        return 1.0
    return float(combine_norms(NUMPY, coef * stats.norms, stats.norm_type) / stats.total_norm)


def _stats(
    run: Run, number: int, rows: Rows, where: NDArray[np.intp], policy: Policy
) -> Iterator[GradientStats]:
    """The run's figures as the policy would have met them, step by step."""
    p, recorded = policy.norm_type, recorded_norm_type(run)
    columns = run.parts[number].columns
    if p not in (recorded, INF) or (p == INF != recorded and not columns):
        raise UsageError(
            f"{policy.spec()} wants the {p:g}-norm; the run holds the {recorded:g}-norm"
        )
    norms, largest = _columns(run, columns, rows)
    norms = largest if p == INF else norms
    names = tuple(run.tensors[i].name for i in columns) or ("all gradients",)
    sizes = tuple(int(np.prod(run.tensors[i].shape)) for i in columns) or (1,)
    for i, row in enumerate(where if columns else np.arange(rows.size)):
        total = rows["norm"][i] if p == recorded else combine_norms(NUMPY, norms[row], p)
        broken = (~np.isfinite(norms[row])).astype(np.int64)
        nothing = np.zeros_like(broken)
        total_norm = scalar(float(total))
        yield GradientStats(
            names, norms[row], largest[row], broken, nothing, sizes, total_norm, norm_type=p
        )


def _columns(run: Run, columns: list[int], rows: Rows) -> tuple[Floats, Floats]:
    """Norms and largest magnitudes of some tensors; of all gradients as one where there are none.

    Args:
        run: the run.
        columns: places of the tensors.
        rows: the steps, as the one tensor has them.
    """
    if columns:
        return run.tensor_norms[:, columns], run.tensor_max_abs[:, columns]
    whole = rows["norm"][:, None]
    return whole, whole
