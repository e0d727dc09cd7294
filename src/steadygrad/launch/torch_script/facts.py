"""What a run file says once about an observed PyTorch training."""

from __future__ import annotations

from typing import Any

import torch

from steadygrad.launch.torch_script.census import Census
from steadygrad.runlog.facts import versions_of
from steadygrad.torch.record.recording import UNSEEDED


def facts(census: Census | None, amp: bool) -> dict[str, Any]:
    """Versions, device, seed if one was set, and the models' class names.

    Args:
        census: the script's modules.
        amp: whether a loss was scaled.

    Returns:
        JSON values.
    """
    known: dict[str, Any] = {
        "framework": "torch",
        "versions": versions_of("torch", "numpy"),
        "threads": torch.get_num_threads(),
    }
    seed = torch.initial_seed()
    if seed != UNSEEDED:
        known["seed"] = seed
    if amp:
        known["amp"] = True
    if census is not None:
        known["models"] = census.model_names()
        device = census.device()
        if device:
            known["device"] = device
    return known
