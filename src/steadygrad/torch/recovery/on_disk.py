"""Snapshots on disk: written by a thread, and read again after a restart."""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from steadygrad.errors import SteadyGradWarning, UsageError
from steadygrad.recovery.files import claim, drop_after, read_newest, release, write_snapshot
from steadygrad.runlog.notice import warn
from steadygrad.torch.distributed.board import is_job
from steadygrad.torch.gradients.parameters import parameters_of
from steadygrad.torch.internals.warn import warn_user
from steadygrad.torch.recovery.agreement import common_newest, largest
from steadygrad.torch.recovery.shards import as_pieces, as_tensors, meshes_of
from steadygrad.torch.recovery.training_state import (
    TrainingState,
    load_portable,
    packed,
    portable,
    unpacked,
)

_PARTS = frozenset({"weights", "optimizer", "buffers", "partners", "policy", "generators", "batch"})
"""What a snapshot on disk holds."""


class _Content(NamedTuple):
    """A snapshot to be written.

    Attributes:
        step: before which it was taken.
        parts: what it holds.
        names: of the partners.
    """

    step: int
    parts: dict[str, Any]
    names: Collection[str]


class SnapshotFolder:
    """This rank's and optimizer's part of a folder of snapshots.

    Args:
        folder: as the ladder names it; empty for none, and nothing is written then.
        index: number of the optimizer within the run.
        keep: most snapshots.

    Attributes:
        whole: the folder of all ranks and optimizers; None where none was named.
    """

    def __init__(self, folder: str, index: int, keep: int) -> None:
        self.whole = Path(folder).absolute() if folder else None
        self._index, self._keep = index, keep
        self._own = _own_part(self.whole, index) if self.whole else None
        claim(self._own, self)
        self._writing: threading.Thread | None = None
        self._lock = threading.Lock()  # around the two that follow
        self._busy = False
        self._late: _Content | None = None
        self._readable = False  # whether a snapshot was seen to be read again

    def write(
        self,
        optimizer: torch.optim.Optimizer,
        step: int,
        state: TrainingState,
        names: Collection[str],
    ) -> None:
        """Write a snapshot by a thread, after the one that is being written.

        Of those that come meanwhile the newest is written.

        Args:
            optimizer: whose training.
            step: before which the snapshot was taken.
            state: the snapshot.
            names: of the partners, for the words where it cannot be read again.
        """
        if self._own is None:
            return
        params = parameters_of(optimizer)
        waits = is_job() and bool(largest(int(self._busy), params[0].device))
        try:
            content = portable(optimizer, _places(params), params, state.weights) | {
                "buffers": state.buffers,
                "partners": state.partners,
                "policy": state.policy,
                "generators": state.generators,
                "batch": state.batch if state.batch >= 0 else step,
            }
            content = as_pieces(content, meshes_of(params))
        except Exception as error:  # a state that cannot be copied: training goes on
            warn(f"recover: no snapshot was written: {error!r}", SteadyGradWarning)
            return
        due = _Content(step, content, names)
        with self._lock:
            self._late = due if waits or self._busy else None
            if self._late is not None:
                return  # in a job on all ranks: a step that one of them lacks is no snapshot
            self._busy = True
        writing = threading.Thread(
            target=self._write_in_turn, args=(self._own, due, is_job()), name="steadygrad-snapshot"
        )
        self._writing = writing
        writing.start()

    def _write_in_turn(self, folder: Path, due: _Content, in_job: bool) -> None:
        following: _Content | None = due
        while following is not None:
            self._write(folder, *following)
            with self._lock:
                following = None if in_job else self._late
                self._late = self._late if in_job else None
                self._busy = following is not None

    def _write(
        self, folder: Path, step: int, content: dict[str, Any], names: Collection[str]
    ) -> None:
        try:
            data = packed(content)
            self._require_readable(data, names)
            write_snapshot(folder, step, data, self._keep)
        except Exception as error:  # a full disk must not end a training
            warn_user(f"no snapshot was written to {folder}: {error}", SteadyGradWarning)

    def _require_readable(self, data: bytes, names: Collection[str]) -> None:
        """Refuse snapshots that could not be read again; the first one tells of all."""
        if self._readable:
            return
        try:
            unpacked(data)
        except ValueError as error:
            raise UsageError(
                f"it holds {error}, and could not be read again. See what state_dict() gives of: "
                f"{', '.join(names)}"
            ) from None
        self._readable = True

    def drop_after(self, step: int) -> None:
        """Remove what was written of later steps, which have been taken back."""
        if self._own is not None:
            with self._lock:
                if self._late is not None and self._late.step > step:
                    self._late = None
            self.wait()
            drop_after(self._own, step)

    def wait(self) -> None:
        """Until what is being written is on disk."""
        if self._writing is not None:
            self._writing.join()

    def close(self) -> None:
        """Let another training write here."""
        self.wait()
        late, self._late = self._late, None
        if late is not None and self._own is not None:
            self._write(self._own, *late)
        release(self._own, self)

    def restore(
        self, optimizer: torch.optim.Optimizer, folder: str | None
    ) -> tuple[int, dict[str, Any]] | None:
        """Put the weights and the optimizer of the newest snapshot that is whole back in place.

        Args:
            optimizer: made as it was when that was written.
            folder: where it is; None for this one.

        Returns:
            Its step, and all that was saved; None where there is no snapshot.

        Raises:
            UsageError: no folder is known, or what was saved is of other weights.
        """
        params = parameters_of(optimizer)
        place = self._own if folder is None else _own_part(Path(folder).absolute(), self._index)
        if place is None:
            raise UsageError(
                "restore: no folder is known; type attach(..., recover='auto+snapshots:FOLDER')"
            )
        snapshot = _agreed_newest(place, params)
        if snapshot is None:
            return None
        step, data = snapshot
        saved = as_tensors(
            _parts_of(data, f"the snapshot of step {step} in {place}"), meshes_of(params)
        )
        odd = load_portable(optimizer, _places(params), params, saved)
        if odd:
            raise UsageError(
                f"restore: {place} holds other weights than this optimizer, or weights that are "
                f"split over the ranks in another way: {', '.join(odd[:4])}"
            )
        drop_after(place, step)
        return step, saved


def _parts_of(data: bytes, which: str) -> dict[str, Any]:
    """What a snapshot holds.

    Raises:
        UsageError: it holds code, or lacks a part.
    """
    try:
        saved = unpacked(data)
    except ValueError as error:
        raise UsageError(
            f"restore: {which} holds {error}, and no code in it is run: remove it, and an earlier "
            "one is taken"
        ) from None
    lacking = ", ".join(sorted(_PARTS - saved.keys()))
    if lacking:
        raise UsageError(
            f"restore: {which} lacks {lacking}: remove it, and an earlier one is taken"
        )
    return saved


def _agreed_newest(place: Path, params: Sequence[torch.Tensor]) -> tuple[int, bytes] | None:
    """The newest snapshot that is whole on all ranks."""
    newest = read_newest(place)
    if not is_job():
        return newest
    common = common_newest(newest, lambda until: read_newest(place, until), params[0].device)
    if common is None and newest is not None:
        warn_user(
            f"nothing was restored: {place} holds step {newest[0]}, but there is no step of "
            "which every rank has a snapshot",
            SteadyGradWarning,
        )
    return common


def _own_part(whole: Path, index: int) -> Path:
    rank = f"rank-{torch.distributed.get_rank() if is_job() else 0}"
    return whole / (f"{rank}-optimizer-{index}" if index else rank)


def _places(params: Sequence[torch.Tensor]) -> list[str]:
    return [f"parameter {index}" for index in range(len(params))]
