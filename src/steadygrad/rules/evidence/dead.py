"""Gradients that are exactly zero: from the start, or since when."""

from __future__ import annotations

import numpy as np

from steadygrad.rules.evidence.view import View


def nothing_at_all(view: View) -> bool:
    """Whether every gradient and every loss of the run is exactly 0."""
    losses = view.loss[view.usable]
    return never_lived(view) and bool(len(losses)) and not np.nan_to_num(losses, nan=1.0).any()


def never_lived(view: View) -> bool:
    """Whether not one gradient of the whole run was other than zero."""
    return not (view.norm[view.usable] > 0).any()
