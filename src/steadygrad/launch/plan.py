"""What `steadygrad run` was asked for: plain data that also travels to child processes."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field

_DEFAULT = "steadygrad-run-"
_NEWEST = 8


@dataclass(frozen=True)
class Plan:
    """One call of `steadygrad run`.

    Attributes:
        target: path of the script, or name of the module.
        arguments: the script's own arguments.
        as_module: the target is a module, as after ``python -m``.
        out: path of the run file to write, absolute; never overwritten unless `force`.
        clip: the spec of the policy that replaces the script's own clip calls; None observes.
        on_nonfinite: as `attach` has it; None is its default.
        find_nan: say where the first NaN or inf came from (PyTorch).
        seed: what shifts the script's random seeds; None leaves them alone.
        resumes: the script was handed the snapshots of an earlier run.
        logs: specs of the loggers that every step is sent to, alerts among them.
        alert_on: the least severity that alerts tell of.
        stop_on: the least severity that ends the script; None never does.
        folder: what relative paths in `logs` start from; the script may change its own.
        record_arguments: write the script's arguments as they are, secrets among them.
        quiet: no last words.
        force: replace a run file that exists.
        speaks: this process prints the last words (rank 0).
        process: name of a child process; empty for the one that was started.
        cell: a notebook's cell, as in ``Cell In[3]``, that is observed; empty for a script.
    """

    target: str
    arguments: tuple[str, ...] = ()
    as_module: bool = False
    out: str = ""
    clip: str | None = None
    on_nonfinite: str | None = None
    find_nan: bool = False
    seed: int | None = None
    resumes: bool = False
    logs: tuple[str, ...] = field(default=(), repr=False)  # webhooks' addresses are secrets
    alert_on: str = "error"
    stop_on: str | None = None
    folder: str = ""
    record_arguments: bool = False
    quiet: bool = False
    force: bool = False
    speaks: bool = True
    process: str = ""
    cell: str = ""

    @property
    def command(self) -> list[str]:
        """The script's own command line."""
        if self.cell:
            return ["%%steadygrad"]
        start = ["python", "-m", self.target] if self.as_module else ["python", self.target]
        return [*start, *self.arguments]

    @property
    def shown_arguments(self) -> list[str]:
        """The script's arguments as they may be printed: only harmless ones are left."""
        from steadygrad.runlog.facts import harmless

        if self.record_arguments:
            return list(self.arguments)
        return harmless(self.arguments, "." if self.as_module else os.path.dirname(self.target))


def rank_of(environment: dict[str, str] | os._Environ[str]) -> int | None:
    """This process's rank where a launcher started several, else None.

    Example:
        >>> rank_of({"RANK": "1", "WORLD_SIZE": "2"}), rank_of({"RANK": "0", "WORLD_SIZE": "1"})
        (1, None)
    """
    rank, world = environment.get("RANK", ""), environment.get("WORLD_SIZE", "1")
    return int(rank) if rank.isdigit() and world.isdigit() and int(world) > 1 else None


def default_output() -> str:
    """The path of a new run file, named after the current second, where none was asked for."""
    from steadygrad.paths import next_free

    return next_free(os.path.abspath(time.strftime(f"{_DEFAULT}%Y%m%d-%H%M%S.db")))


def same_default(path: str) -> list[str]:
    """The newest files beside one that was named by `default_output`; none beside another.

    Example:
        >>> same_default("/tmp/run.db")
        []
    """
    if not os.path.basename(path).startswith(_DEFAULT):
        return []
    import glob

    pattern = os.path.join(glob.escape(os.path.dirname(path)), f"{_DEFAULT}*.db")
    return sorted(glob.glob(pattern), reverse=True)[:_NEWEST]
