"""This process's place among those that train together, as its framework knows it.

One run file is written for all of them, by the first. No framework is imported to ask.
"""

from __future__ import annotations

import json
import os
import sys
from typing import NamedTuple


class Place(NamedTuple):
    """One of several processes.

    Attributes:
        rank: of this one.
        ranks: number of all.
    """

    rank: int
    ranks: int


def place_in_job() -> Place | None:
    """The place of this process; None where no framework knows of others that train with it.

    Example:
        >>> place_in_job() is None
        True
    """
    places = (find() for find in (_of_torch, _of_jax, _of_tensorflow))
    return next((place for place in places if place is not None and place.ranks > 1), None)


def writes_for_all(run: object) -> bool:
    """Whether this process is to write the run file at a path; an open writer is always written.

    Args:
        run: a path, which every process is given alike, or an open writer.

    Example:
        >>> writes_for_all("run.db")
        True
    """
    place = place_in_job() if isinstance(run, (str, os.PathLike)) else None
    return place is None or place.rank == 0


def _of_torch() -> Place | None:
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    return Place(distributed.get_rank(), distributed.get_world_size())


def _of_jax() -> Place | None:
    jax = sys.modules.get("jax")
    is_initialized = getattr(getattr(jax, "distributed", None), "is_initialized", None)
    if jax is None or is_initialized is None or not is_initialized():
        return None
    return Place(jax.process_index(), jax.process_count())


def _of_tensorflow() -> Place | None:
    """From `TF_CONFIG`: the chief, where there is one, comes before the workers."""
    if "tensorflow" not in sys.modules:
        return None
    try:
        config = json.loads(os.environ.get("TF_CONFIG", ""))
        kind, number = config["task"]["type"], int(config["task"]["index"])
        chiefs, workers = (len(config["cluster"].get(each, ())) for each in ("chief", "worker"))
    except (ValueError, LookupError, TypeError, AttributeError):
        return None
    if kind not in ("chief", "worker"):
        return None
    return Place(number + (chiefs if kind == "worker" else 0), chiefs + workers)
