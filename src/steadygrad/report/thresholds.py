"""The calibration as a picture: how the norms are spread, and what each threshold would clip."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from steadygrad.calibration import Calibration, calibrate
from steadygrad.calibration.advice import label, typed
from steadygrad.errors import CalibrationError
from steadygrad.report.model import NormHistogram, Picture, Refused
from steadygrad.report.numbers import plain, short

if TYPE_CHECKING:
    from steadygrad.runlog import Run

BINS = 64
MOST_DECADES_ABOVE = 2.0


def thresholds(run: Run, optimizer: int) -> Picture | Refused:
    """Calibrate one optimizer's steps and draw up the picture.

    Args:
        run: the run.
        optimizer: its number.

    Returns:
        `Calibration.to_dict()` and ``histogram``: ``edges`` in log10 of the norm, ``counts``
        of all usable steps, ``rates`` that a threshold at each edge would clip, and how many
        steps lie ``beyond`` the last bin and are counted in it. Or ``refused`` with the reason
        where the run gives no threshold.
    """
    try:
        calibration = calibrate(run, optimizer=optimizer)
    except CalibrationError as error:
        return {"refused": str(error), "optimizer": optimizer}
    rows = run.steps[run.parts[optimizer].rows]
    data: Picture = plain(calibration.to_dict())
    data["label"], data["value"] = label(calibration)
    data["typed"] = typed(calibration.spec, run.info)
    data["curve"] = [short(np.array(pair)) for pair in calibration.curve]
    data["histogram"] = _histogram(rows, calibration)
    return data


def _histogram(rows: Any, calibration: Calibration) -> NormHistogram:
    usable = rows[np.isfinite(rows["norm"]) & (rows["norm"] > 0)]
    logs = np.log10(usable["norm"])
    threshold = float(np.log10(calibration.threshold))
    # an explosion to 1e30 must not squeeze the ordinary norms into one bar
    cap = max(float(np.quantile(logs, 0.98)), threshold) + MOST_DECADES_ABOVE
    low, high = min(float(logs.min()), threshold), max(min(float(logs.max()), cap), threshold)
    margin = max(0.02 * (high - low), 0.01)
    edges = np.linspace(low - margin, high + margin, BINS + 1)
    counts, _ = np.histogram(np.minimum(logs, edges[-1]), bins=edges)
    stable = logs[
        (usable["step"] >= calibration.first_step) & (usable["step"] <= calibration.last_step)
    ]
    below = np.searchsorted(np.sort(stable), edges, side="right")
    return {
        "edges": short(edges),
        "counts": counts.tolist(),
        "rates": short(1.0 - below / stable.size),
        "beyond": int((logs > edges[-1]).sum()),
    }
