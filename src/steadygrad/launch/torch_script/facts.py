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
    facts_known: dict[str, Any] = {
        "framework": "torch",
        "versions": versions_of("torch", "numpy"),
        "threads": torch.get_num_threads(),
    }
    seed = torch.initial_seed()
    if seed != UNSEEDED:
        facts_known["seed"] = seed
    if amp:
        facts_known["amp"] = True
    if census is not None:
        facts_known["models"] = census.model_names()
        device = census.device()
        if device:
            facts_known["device"] = device
    return facts_known
