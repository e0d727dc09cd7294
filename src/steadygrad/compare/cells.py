"""The grid of policies and seeds.

A finished cell leaves a small JSON file beside its run file, with a digest of all
that went into it: script, arguments, policy, seed, version. Starting again reuses
the cells whose digest still holds.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from steadygrad._version import __version__
from steadygrad.errors import UsageError
from steadygrad.policies import parse

AS_WRITTEN = "script"
"""Instead of a spec: leave the script's own clip calls as they are."""


@dataclass(frozen=True)
class Cell:
    """One training: a policy and a seed.

    Attributes:
        spec: the policy, or ``script`` for the script as it is written.
        seed: number that shifts the script's random seeds.
        folder: where its files are.
        name: what its files are called, without extension.
        digest: of all that went into it.
    """

    spec: str
    seed: int
    folder: Path
    name: str
    digest: str

    @property
    def run_file(self) -> Path:
        """Where the run is recorded."""
        return self.folder / f"{self.name}.db"

    @property
    def log(self) -> Path:
        """What the script printed, standard output and error together."""
        return self.folder / f"{self.name}.log"

    @property
    def note(self) -> Path:
        """Where it is written down that the cell is finished."""
        return self.folder / f"{self.name}.cell.json"

    def finished(self) -> dict[str, object] | None:
        """How the cell ended, ``exit`` and ``seconds``; None where it has to be run.

        One that ended well and recorded nothing is run again: it shows nothing.
        """
        try:
            note = json.loads(self.note.read_text())
            digest, code, seconds = note["digest"], int(note["exit"]), float(note["seconds"])
        except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
            return None
        shows = code != 0 or self.run_file.exists()
        return {"exit": code, "seconds": seconds} if digest == self.digest and shows else None


@dataclass(frozen=True)
class Grid:
    """What is compared.

    Attributes:
        script: path of the script, or a module's name.
        arguments: the script's own arguments.
        specs: the policies, at least one.
        seeds: number of seeds; they are 0, 1, ...
        folder: where run files and results go.
        as_module: the script is a module, as after ``python -m``.

    Raises:
        UsageError: no policies, the same one twice, no seeds, no script.
        SpecError: a spec that cannot be read.
    """

    script: str
    arguments: tuple[str, ...]
    specs: tuple[str, ...]
    seeds: int
    folder: Path
    as_module: bool = False

    def __post_init__(self) -> None:
        for spec in self.specs:
            if spec != AS_WRITTEN:
                parse(spec)
        if not self.specs or len(set(self.specs)) < len(self.specs):
            raise UsageError(
                f"each policy once, and at least one, got {list(self.specs)}: type for example "
                "--clip none --clip norm:1.0 --clip auto"
            )
        if self.seeds < 1:
            raise UsageError(f"seeds must be 1 or more, got {self.seeds}: type --seeds 3")
        if not self.as_module and not os.path.isfile(self.script):
            raise UsageError(f"there is no script {self.script} in {os.getcwd()}")

    @cached_property
    def source(self) -> bytes:
        """The script, byte by byte; empty of a module."""
        return b"" if self.as_module else Path(self.script).read_bytes()

    @cached_property
    def cells(self) -> list[Cell]:
        """All cells, seed by seed, so that every policy has a result early on."""
        return [self._cell(spec, seed) for seed in range(self.seeds) for spec in self.specs]

    def _cell(self, spec: str, seed: int) -> Cell:
        parts = [self.script, *self.arguments, spec, str(seed), __version__]
        digest = hashlib.sha256("\0".join(parts).encode() + b"\0" + self.source).hexdigest()
        word = re.sub(r"[^A-Za-z0-9.*@]+", "-", spec).strip("-").replace("*", "all")
        return Cell(spec, seed, self.folder, f"{word}-seed{seed}-{digest[:4]}", digest)

    def command(self, cell: Cell, run_file: str | Path = "") -> list[str]:
        """What runs a cell, with the Python of this process.

        Args:
            cell: which one.
            run_file: where to record it; by default where its result belongs.
        """
        clip = [] if cell.spec == AS_WRITTEN else ["--clip", cell.spec]
        module = ["-m"] if self.as_module else []
        return [
            *(sys.executable, "-m", "steadygrad", "run", "--quiet", "--force"),
            *("--seed", str(cell.seed), "--out", str(run_file or cell.run_file), *clip, *module),
            *(self.script, *self.arguments),
        ]
