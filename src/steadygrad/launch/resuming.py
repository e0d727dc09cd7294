"""`steadygrad run --resume RUN.db`: the snapshots of an earlier run are handed to the script.

A process of its own reads that run file: in the script's nothing may load NumPy before it does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from steadygrad.errors import SteadyGradError, UsageError

NOT_TAKEN = (
    "--resume handed the script its snapshots, but it never called steady.restore(), so it began "
    "anew: type `for step in range(steady.restore(), steps):` after sg.attach(..., recover='auto')"
)

LONGEST_OFFER = 65_536
"""Characters of an environment variable; from 128 KiB on, no process could be started any more."""


def hand_over(path: str) -> None:
    """Hand the script the snapshots of a run.

    Args:
        path: of the run file that the script's own handle wrote.

    Raises:
        UsageError: the run wrote none, or they are gone.
    """
    command = [sys.executable, "-m", "steadygrad.launch.resuming", path]
    reader = subprocess.run(command, capture_output=True, text=True, check=False)
    if reader.returncode != 0:
        raise UsageError(reader.stderr.strip().rpartition("\n")[2] or f"{path} cannot be read")
    os.environ.update(json.loads(reader.stdout))


def trouble_at_the_end() -> str:
    """What to say when the script is over; empty where it took what it was handed."""
    from steadygrad.recovery.resuming import not_taken

    return NOT_TAKEN if not_taken() else ""


def offer_of(path: str) -> dict[str, str]:
    """The environment that hands a run's snapshots over.

    Raises:
        UsageError: the run wrote none, or they are gone.
    """
    from steadygrad.recovery.resuming import RESUME, folders_of, offer
    from steadygrad.runlog import open_run

    folders = folders_of(open_run(path).events)
    if not folders:
        raise UsageError(
            f"{path} tells of no snapshots on disk: they are written where the script types "
            "sg.attach(optimizer, run='run.db', recover='auto+snapshots:FOLDER')"
        )
    for folder in folders.values():
        if not any(Path(folder).glob("*/*.snapshot")):
            raise UsageError(f"there is no snapshot in {folder}, of which {path} tells")
    offer(folders)
    if len(os.environ[RESUME]) > LONGEST_OFFER:
        raise UsageError(f"{path} tells of snapshots of {len(folders):,} optimizers: too many")
    return {RESUME: os.environ[RESUME]}


if __name__ == "__main__":
    try:
        print(json.dumps(offer_of(sys.argv[1])))
    except SteadyGradError as error:
        sys.exit(str(error))
