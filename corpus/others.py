"""Rules of AutoTrainer, SageMaker Debugger and TheDeepChecker, restated on the same runs.

Thresholds are the published ones. Where a rule asks for accuracy, the loss stands in
(no accuracy exists for half of the corpus): "not trained" is a loss that fell by less
than 30 %, or is not finite. Each rule names the ids that it would count as.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from training import Trace

from steadygrad.runlog import Run

VANISHING = {"SG301", "SG106"}
EXPLODING = {"SG101", "SG102", "SG103", "SG201", "SG202", "SG203", "SG204", "SG105", "SG104"}
DEAD = {"SG302"}
LEARNING_RATE = {"SG502"}
INITIAL = {"SG501"}
SATURATED = {"SG304"}
Alarm = set[str]


def _losses(trace: Trace, size: int = 10) -> np.ndarray:
    """Mean loss of each stretch of steps."""
    losses = np.array(trace.losses)
    return losses[: len(losses) // size * size].reshape(-1, size).mean(axis=1)


def _not_trained(trace: Trace) -> bool:
    losses = _losses(trace)
    if not np.isfinite(losses).all():
        return True
    return bool(losses[0] - losses[-1] < 0.3 * abs(losses[0]))


def _sample(run: Run, name: str) -> np.ndarray:
    _, values = run.samples(name)
    return values[np.isfinite(values)] if values.size else np.zeros(0)


def autotrainer(trace: Trace, run: Run) -> list[Alarm]:
    """Gradient ratios, NaN, dying ReLU, slow and oscillating training; gated on poor results."""
    if not _not_trained(trace):
        return []
    found: list[Alarm] = []
    norms, losses = trace.table("norms"), np.array(trace.losses)
    with np.errstate(all="ignore"):
        first, last = norms[:, 0], norms[:, -1]
        ratio = np.nanmedian(first / last) if np.isfinite(norms).any() else np.nan
    if ratio < 1e-3 and np.nanmedian(first) < 1e-4:
        found.append(VANISHING)
    if ratio > 70 or not np.isfinite(norms).all() or not (np.abs(losses) < 1e3).all():
        found.append(EXPLODING)
    if np.median(trace.table("zeros").mean(axis=1)) >= 0.7:
        found.append(DEAD)
    means = _losses(trace)
    if np.isfinite(means).all():
        rises = np.diff(means) >= 0.03 * np.abs(means[:-1])
        if rises.mean() >= 0.2:
            found.append(LEARNING_RATE)
        if (means[0] - means.min()) < 0.01 * abs(means[0]):
            found.append(LEARNING_RATE | INITIAL)
    return found


def sagemaker(trace: Trace, run: Run) -> list[Alarm]:
    """Mean |g|, NaN, dead ReLU, update ratios, weight variances, a loss that does not fall."""
    found: list[Alarm] = []
    mean_abs = trace.table("mean_abs")
    if (mean_abs < 1e-7).any():
        found.append(VANISHING)
    if not np.isfinite(mean_abs).all() or not np.isfinite(trace.losses).all():
        found.append(EXPLODING)
    if (_sample(run, "activation_zero") > 0.5).any():
        found.append(DEAD)
    ratios = _sample(run, "update_ratio")
    if (ratios > 10).any() or (ratios < 1e-8).any():
        found.append(LEARNING_RATE)
    _, deviations = run.samples("weight_std")
    if len(deviations):
        wide = [i for i, t in enumerate(run.tensors) if len(t.shape) > 1]
        variances = deviations[0][wide] ** 2
        variances = variances[np.isfinite(variances)]
        if variances.size > 1 and variances.max() > 10 * variances.min():
            found.append(INITIAL)
    if (_sample(run, "activation_saturated") > 0.5).any():
        found.append(SATURATED)
    means = _losses(trace)
    with np.errstate(all="ignore"):
        falls = (means[:-1] - means[1:]) / np.abs(means[:-1])
    if (falls < 1e-3).mean() > 0.5:
        found.append(LEARNING_RATE | INITIAL)
    return found


def deepchecker(trace: Trace, run: Run) -> list[Alarm]:
    """Mean |g| and its growth, update ratios in log10 -4..-1, dead units, loss decrease."""
    found: list[Alarm] = []
    mean_abs = trace.table("mean_abs")
    with np.errstate(all="ignore"):
        checks = mean_abs[:: max(1, len(mean_abs) // 6)]
        growth = checks[1:] / checks[:-1]
        decaying = (growth < 0.5).all(axis=0).any()
    if (mean_abs < 1e-6).any() or decaying:
        found.append(VANISHING)
    if not np.isfinite(mean_abs).all() or (mean_abs > 1e6).any() or (growth > 2).all(axis=0).any():
        found.append(EXPLODING)
    if (_sample(run, "activation_zero") > 0.5).any():
        found.append(DEAD)
    ratios = _sample(run, "update_ratio")
    if ratios.size and not -4 <= np.log10(np.median(ratios) + 1e-12) <= -1:
        found.append(LEARNING_RATE)
    means = _losses(trace)
    if not np.isfinite(means).all() or means[-1] > 2 * abs(means.min()) + 1e-9:
        found.append(LEARNING_RATE | EXPLODING)
    elif means[0] - means[-1] < 0.05 * abs(means[0]):
        found.append(LEARNING_RATE | INITIAL)
    return found


OTHERS: dict[str, Callable[[Trace, Run], list[Alarm]]] = {
    "AutoTrainer": autotrainer,
    "SageMaker": sagemaker,
    "TheDeepChecker": deepchecker,
}
"""Name -> what it finds: one set of ids for each of its alarms."""
