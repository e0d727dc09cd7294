"""From a recorded run: which threshold, and what a policy would have done.

A package and not a module named `calibrate`, because importing such a module
would hide the function `steadygrad.calibrate` behind itself.
"""

from __future__ import annotations

from steadygrad.calibration.recommending import calibrate
from steadygrad.calibration.replaying import Replay, replay
from steadygrad.calibration.result import Calibration, Outcome, Spike

__all__ = ["Calibration", "Outcome", "Replay", "Spike", "calibrate", "replay"]
