"""The calibration as a picture: how the norms are spread, and what each threshold would clip."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from steadygrad.calibration import Calibration, calibrate
from steadygrad.errors import CalibrationError
from steadygrad.report.numbers import plain, short

if TYPE_CHECKING:
    from steadygrad.runlog import Run

BINS = 64


def thresholds(run: Run, optimizer: int) -> dict[str, Any]:
    """Calibrate one optimizer's steps and draw up the picture.

    Args:
        run: the run.
        optimizer: its number.

    Returns:
        `Calibration.to_dict()` and ``histogram`` (``edges``, in log10 of the norm, and
        ``counts``); or ``refused`` with the reason where the run gives no threshold.
    """
    try:
        found = calibrate(run, optimizer=optimizer)
    except CalibrationError as error:
        return {"refused": str(error), "optimizer": optimizer}
    rows = run.steps[run.steps["optimizer"] == optimizer]
    data: dict[str, Any] = plain(found.to_dict())
    data["curve"] = [short(np.array(pair)) for pair in found.curve]
    data["histogram"] = _histogram(np.asarray(rows["norm"]), found)
    return data


def _histogram(norms: Any, found: Calibration) -> dict[str, Any]:
    usable = norms[np.isfinite(norms) & (norms > 0)]
    logs = np.log10(usable)
    low, high = float(logs.min()), float(logs.max())
    low, high = min(low, np.log10(found.threshold)), max(high, np.log10(found.threshold))
    margin = max(0.02 * (high - low), 0.01)
    counts, edges = np.histogram(logs, bins=BINS, range=(low - margin, high + margin))
    return {"edges": short(edges), "counts": counts.tolist()}
