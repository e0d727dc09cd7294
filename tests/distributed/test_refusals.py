"""What cannot be right on several ranks is refused, with a message that says what to type."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor.placement_types import Placement

import steadygrad.torch as sg
from steadygrad.errors import UsageError
from steadygrad.torch.distributed import layout


@pytest.fixture
def one_rank(monkeypatch):
    """The group of one process."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # a process group takes it
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def attach(**options):
    """To an optimizer over one plain weight."""
    return sg.attach(torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.1), **options)


def test_groups_of_names_beside_a_process_group(one_rank):
    with pytest.raises(UsageError, match=r"clip='norm:1.0', or one optimizer a group"):
        attach(clip={"*": "norm:1.0"}, process_group=one_rank)


def test_recovery_beside_a_process_group(one_rank):
    with pytest.raises(UsageError, match="one reading for all ranks"):
        attach(recover="auto", process_group=one_rank)


@pytest.mark.parametrize("wrap", [lambda group: group, lambda group: {"*": group}])
def test_what_is_no_process_group(one_rank, wrap):
    with pytest.raises(UsageError, match=r"got str; type process_group=mesh.get_group\('pp'\)"):
        attach(process_group=wrap("experts"))


class Diagonal(Placement):
    """Of a later torch: this one's own operations on such a tensor end the process."""


def test_a_placement_that_is_not_understood_is_never_guessed():
    with pytest.raises(UsageError, match=r"Diagonal.*redistribute\(placements=\[Replicate"):
        layout._split_dimensions([Diagonal()])
