"""Cells as tasks of a Ray cluster.

A task runs its cell in a process of its own, as on one machine, in a folder of its own, and
hands back the files: nodes need share none. The script itself is read where it stands, so it has
to be there on every node, in the same folder.
"""

from __future__ import annotations

import ctypes
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from steadygrad._version import __version__
from steadygrad.compare.cells import Cell, Grid
from steadygrad.errors import UsageError, needed_for

RETRIES = 3
"""How often a cell is begun anew whose worker or node has died."""
PATIENCE = 5.0
"""Most seconds to wait for an address to answer."""
CURRENT_CLUSTER = Path("/tmp/ray/ray_current_cluster")  # nosec B108
"""Where Ray keeps the address of the cluster that it started here last."""
KILLED = -9
_KILL_WITH_PARENT = 1  # Linux's PR_SET_PDEATHSIG


@dataclass(frozen=True)
class Ended:
    """What a task hands back.

    Attributes:
        code: the exit code.
        seconds: how long it took.
        files: what it left, by name, byte by byte.
    """

    code: int
    seconds: float
    files: dict[str, bytes]


@dataclass(frozen=True)
class RayEngine:
    """Runs cells on a cluster.

    Args:
        address: of the cluster, as `ray.init` takes it; empty for the one that Ray finds, else a
            cluster on this machine that ends with the comparison.
    """

    address: str = ""

    def run(
        self, grid: Grid, cells: Sequence[Cell], jobs: int
    ) -> Generator[tuple[Cell, int, float], None, None]:
        """Run cells; one whose worker dies is begun anew, `RETRIES` times.

        Args:
            grid: that they belong to.
            cells: which of them.
            jobs: trainings at a time; 0 for one a CPU of the cluster, or one a GPU.

        Yields:
            Each cell as it ends, with its exit code and its seconds.

        Raises:
            UsageError: no cluster answers, or its nodes lack the script or this steadygrad.
            MissingExtraError: Ray is not installed.
        """
        # a thread of Ray prints what its nodes report, and standard output is for results
        with redirect_stdout(sys.stderr), _connected(self.address) as ray:
            gpus = 1 if ray.cluster_resources().get("GPU") else 0
            options = {"num_cpus": 1, "num_gpus": gpus, "max_retries": RETRIES}
            task = ray.remote(**options)(run_cell)
            left = list(cells)
            running: dict[object, Cell] = {}
            while left or running:
                while left and (not jobs or len(running) < jobs):
                    cell = left.pop(0)
                    threads = os.environ.get("OMP_NUM_THREADS")
                    running[task.remote(grid, cell, os.getcwd(), __version__, threads)] = cell
                (reference,), _ = ray.wait(list(running))
                cell = running.pop(reference)
                yield (cell, *_result(ray, reference, cell))


def run_cell(grid: Grid, cell: Cell, folder: str, version: str, threads: str | None) -> Ended:
    """In a worker: run a cell, and collect what it left.

    Args:
        grid: that it belongs to.
        cell: which one.
        folder: where the comparison was started.
        version: of steadygrad there.
        threads: ``OMP_NUM_THREADS`` there; None for what Ray sets.

    Raises:
        UsageError: this node lacks the script, or has another steadygrad.
    """
    here = f"node {socket.gethostname()}"
    if version != __version__:
        raise UsageError(
            f"{here} has steadygrad {__version__}, and the comparison was started by {version}: "
            f"type pip install steadygrad=={version} on every node"
        )
    environment = {**os.environ, **({"OMP_NUM_THREADS": threads} if threads else {})}
    with tempfile.TemporaryDirectory(prefix="steadygrad-") as results:
        began = time.perf_counter()
        with (Path(results) / cell.log.name).open("wb") as log:
            child = subprocess.Popen(
                grid.command(cell, Path(results) / cell.run_file.name),
                cwd=_folder_with_script(grid, folder, here),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                preexec_fn=_end_with_worker if sys.platform == "linux" else None,
            )
            try:
                code = child.wait()
            finally:  # the task may be cancelled
                child.kill()
        seconds = time.perf_counter() - began
        files = {path.name: path.read_bytes() for path in Path(results).iterdir()}
    return Ended(code, seconds, files)


def _folder_with_script(grid: Grid, folder: str, here: str) -> str:
    """The folder of the comparison, or the task's own, as ``ray job submit`` makes it."""
    for place in (folder, os.getcwd()):
        script = Path(place) / grid.script
        if grid.as_module and Path(place).is_dir():
            return place
        if not grid.as_module and script.is_file() and script.read_bytes() == grid.source:
            return place
    raise UsageError(
        f"{here} has no {Path(folder) / grid.script} with the same content: start the comparison "
        "in a folder that all nodes share, or have Ray carry it to them: ray job submit "
        "--working-dir . -- steadygrad compare --engine ray ..."
    )


def _end_with_worker() -> None:
    """Between fork and exec: have the system end this process when the worker is killed."""
    ctypes.CDLL(None).prctl(_KILL_WITH_PARENT, signal.SIGKILL)


@contextmanager
def _connected(address: str) -> Iterator[ModuleType]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # its warning of a change
    with needed_for("--engine ray", "ray"):
        import ray
    _require_answer(address)
    quiet = {"include_dashboard": False} if not address and not _cluster_is_known() else {}
    try:
        ray.init(address or None, log_to_driver=False, logging_level="ERROR", **quiet)
    except Exception as error:
        raise UsageError(
            f"no Ray cluster answers{f' at {address}' if address else ''}: "
            f"{type(error).__name__}: {error}. Start one by: ray start --head"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _cluster_is_known() -> bool:
    """Whether `ray.init` would look for a cluster before it starts one."""
    return bool(os.environ.get("RAY_ADDRESS")) or CURRENT_CLUSTER.exists()


def _require_answer(address: str) -> None:
    """Ray itself would try for a minute."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():  # empty, `auto`, `local`
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE).close()
    except OSError as error:
        raise UsageError(
            f"no Ray cluster answers at {address}: {error}. Start one by: ray start --head"
        ) from error


def _result(ray: ModuleType, reference: object, cell: Cell) -> tuple[int, float]:
    """Exit code and seconds of a cell, whose files are put where they belong."""
    try:
        ended: Ended = ray.get(reference)
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError) as error:
        cell.log.write_text(f"its worker died {RETRIES + 1} times: {type(error).__name__}\n")
        return KILLED, math.nan
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UsageError):
            raise UsageError(str(error.cause)) from None
        raise
    except ray.exceptions.RaySystemError as error:
        raise UsageError(
            "a node of the cluster cannot read the cell: type pip install "
            f'"steadygrad[ray]=={__version__}" on every node. It said: {str(error)[-300:]}'
        ) from error
    for name, data in ended.files.items():
        (cell.folder / name).write_bytes(data)
    return ended.code, ended.seconds
