"""Whatever ends a process or takes its disk, the run file opens and the training is untouched."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from steadygrad.report.headline import verdict
from steadygrad.runlog import open_run

Start = Callable[..., "subprocess.Popen[str]"]
HANGS = 120
"""Seconds after which a process is taken to hang; no measure, machines may be busy."""

TRAIN = """
import sys, time
import numpy as np
from steadygrad.runlog import RunWriter, StepRecord, TensorInfo, store

path, mode = sys.argv[1:]
store.journal_mode = lambda path: mode
writer = RunWriter(path)
ids = np.array(writer.add_tensors([TensorInfo(f"t{i}", (100,)) for i in range(20)]))
rng = np.random.default_rng(0)
for step in range(10**9):
    norms = rng.lognormal(size=20)
    zeros = np.zeros(20)
    writer.write_step(StepRecord(step, norm=float(step)), ids, norms, norms, zeros, zeros)
    print(step, time.time(), flush=True)
    time.sleep(0.002)
"""


def wait_for_steps(path: Path) -> None:
    """Wait until a run has begun: a busy machine takes long to start Python."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if path.exists() and path.stat().st_size and len(open_run(path)):
            return
        time.sleep(0.05)
    raise AssertionError("the training never began")


def lines_until(process: subprocess.Popen[str], seconds: float) -> list[tuple[int, float]]:
    """What a process had printed that was killed some seconds after its first steps."""
    wait_for_steps(Path(process.args[-2]))
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    out, _ = process.communicate(timeout=HANGS)
    whole = [line.split() for line in out.splitlines() if len(line.split()) == 2]
    return [(int(step), float(at)) for step, at in whole[:-1]]


def integrity(path: Path) -> str:
    connection = sqlite3.connect(path)
    try:
        return str(connection.execute("PRAGMA integrity_check").fetchone()[0])
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("seconds", "mode"), [(0.0, "WAL"), (1.35, "WAL"), (2.9, "WAL"), (1.6, "TRUNCATE")]
)
def test_kill_9_costs_less_than_the_last_second(
    seconds: float, mode: str, start_python: Start, tmp_path: Path
) -> None:
    printed = lines_until(start_python(TRAIN, tmp_path / "run.db", mode), seconds)
    run = open_run(tmp_path / "run.db")
    died = printed[-1][1]
    due = [step for step, at in printed if at < died - 1.0]
    assert len(run) >= len(due)
    np.testing.assert_array_equal(run.steps.norm, np.arange(len(run)))
    assert np.isfinite(run.tensor_norms).all()
    assert run.tensor_norms.shape == (len(run), 20)
    assert integrity(tmp_path / "run.db") == "ok"


def test_the_file_alone_holds_what_is_older_than_a_checkpoint(
    start_python: Start, tmp_path: Path
) -> None:
    printed = lines_until(start_python(TRAIN, tmp_path / "run.db", "WAL"), 4.5)
    (tmp_path / "alone").mkdir()
    shutil.copy(tmp_path / "run.db", tmp_path / "alone" / "run.db")
    died = printed[-1][1]
    due = [step for step, at in printed if at < died - 3.0]
    assert due, "the training was too slow to tell"
    assert len(open_run(tmp_path / "alone" / "run.db")) >= len(due)


def test_a_killed_run_is_read_without_being_changed(start_python: Start, tmp_path: Path) -> None:
    lines_until(start_python(TRAIN, tmp_path / "run.db", "WAL"), 0.0)
    names = ("run.db", "run.db-wal")
    before = [(tmp_path / name).read_bytes() for name in names]
    first, second = open_run(tmp_path / "run.db"), open_run(tmp_path / "run.db")
    assert len(first) == len(second) > 0
    assert [(tmp_path / name).read_bytes() for name in names] == before


HALF_COMMIT = """
import os, sqlite3, sys

connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA journal_mode = TRUNCATE")
connection.execute("PRAGMA cache_size = 1")  # pages reach the disk before the commit
connection.execute("BEGIN")
for number in range(1000):
    connection.execute("INSERT INTO step_chunks VALUES (?, 1, ?)", (10_000 + number, b"x" * 2000))
os._exit(0)
"""


def test_a_half_written_commit_is_rolled_back_in_a_copy(
    start_python: Start, record_run: Callable[..., Path], figures: Callable[..., dict]
) -> None:
    path = record_run(figures(100, 3))
    start_python(HALF_COMMIT, path).communicate(timeout=HANGS)
    journal = path.with_name(path.name + "-journal")
    before = path.read_bytes(), journal.read_bytes()
    assert before[1], "there is nothing to roll back"
    run = open_run(path)
    np.testing.assert_array_equal(run.steps.step, np.arange(100))
    assert (path.read_bytes(), journal.read_bytes()) == before


END = """
import os, sys
from steadygrad.runlog import RunWriter, StepRecord

writer = RunWriter(sys.argv[1])
for step in range(100):
    writer.write_step(StepRecord(step), [], [], [], [], [])
{ending}
"""


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        ("pass", 0),
        ("raise ValueError('boom')", 1),
        ("sys.exit(3)", 3),
        ("import signal; signal.raise_signal(signal.SIGINT)", -signal.SIGINT),
    ],
)
def test_every_step_is_there_after_any_ordinary_end(
    ending: str, code: int, start_python: Start, tmp_path: Path
) -> None:
    process = start_python(END.format(ending=ending), tmp_path / "run.db")
    _, err = process.communicate(timeout=HANGS)
    assert process.returncode == code, err
    assert [f.name for f in tmp_path.glob("run.db*")] == ["run.db"]
    run = open_run(tmp_path / "run.db")
    assert len(run) == 100
    assert "ended" in run.info


FORK = """
import os, sys, time
from steadygrad.runlog import RunWriter, StepRecord

writer = RunWriter(sys.argv[1])
def step(number):
    writer.write_step(StepRecord(number), [], [], [], [], [])
for number in range(50):
    step(number)
connection = writer._recorder.store._connection
held = sys.getrefcount(connection)
children = []
for way in ("exit", "_exit", "write", "close"):
    child = os.fork()
    if child == 0:
        if way == "_exit":
            os._exit(0)
        for number in range(1000, 1100):
            step(number)
        writer.write_event("child", {})
        writer.update_info(child=True)
        assert sys.getrefcount(connection) == held + 1  # never to be closed by the child
        assert not writer.flush(timeout=3600)
        if way == "close":
            writer.close()
        sys.exit(0)
    children.append(child)
    for number in range(50):
        step(number)
for child in children:
    assert os.waitpid(child, 0)[1] == 0
step(0)
writer.close()
"""


def test_forked_children_never_write_and_never_hang(start_python: Start, tmp_path: Path) -> None:
    process = start_python(FORK, tmp_path / "run.db")
    _, err = process.communicate(timeout=HANGS)
    assert process.returncode == 0, err
    run = open_run(tmp_path / "run.db")
    assert len(run) == 251
    assert run.steps.step.max() == 49
    assert run.events == []
    assert "child" not in run.info
    assert integrity(tmp_path / "run.db") == "ok"


BUSY_FORK = """
import os, sys, threading
import numpy as np
from steadygrad.runlog import RunWriter, StepRecord, TensorInfo

writer = RunWriter(sys.argv[1])
ids = np.array(writer.add_tensors([TensorInfo(f"t{i}") for i in range(200)]))
stop = threading.Event()
def train():
    norms = np.ones(200)
    while not stop.wait(0.0005):
        writer.write_step(StepRecord(0), ids, norms, norms, norms, norms)
        writer._pump._wake.set()  # commit all the time: a fork falls into the midst of one
thread = threading.Thread(target=train)
thread.start()
for _ in range(12):
    child = os.fork()
    if child == 0:
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
stop.set()
thread.join()
writer.close()
"""


def test_forks_in_the_midst_of_a_commit(start_python: Start, tmp_path: Path) -> None:
    process = start_python(BUSY_FORK, tmp_path / "run.db")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert len(open_run(tmp_path / "run.db")) > 0
    assert integrity(tmp_path / "run.db") == "ok"


WORKERS = """
import multiprocessing, sys
from steadygrad.runlog import RunWriter, StepRecord

def work(path):
    own = RunWriter(path)
    for step in range(30):
        own.write_step(StepRecord(step), [], [], [], [], [])
    global kept
    kept = own  # alive until the process ends

if __name__ == "__main__":
    for way in ("fork", "spawn"):
        process = multiprocessing.get_context(way).Process(target=work, args=(sys.argv[1] + way,))
        process.start()
        process.join()
        assert process.exitcode == 0
"""


def test_a_worker_that_records_for_itself_finishes_its_file(
    start_python: Start, tmp_path: Path
) -> None:
    process = start_python(WORKERS, tmp_path / "run-")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    for way in ("fork", "spawn"):
        assert len(open_run(tmp_path / f"run-{way}")) == 30
        assert not (tmp_path / f"run-{way}-wal").exists()


LIMITED = """
import resource, sys
import numpy as np
from steadygrad.runlog import RunWriter, StepRecord, TensorInfo

resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, 600_000))
writer = RunWriter(sys.argv[1])
ids = np.array(writer.add_tensors([TensorInfo(f"t{i}", (100,)) for i in range(50)]))
rng = np.random.default_rng(0)
for step in range(5000):
    norms = rng.lognormal(size=50)
    writer.write_step(StepRecord(step, norm=float(step)), ids, norms, norms, norms * 0, norms * 0)
writer.close()
print("trained")
"""


def test_a_disk_that_fills_up_lets_the_training_end_well(
    start_python: Start, tmp_path: Path
) -> None:
    process = start_python(LIMITED, tmp_path / "run.db")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "trained\n"), err
    assert err.count("RecordingWarning") == 1
    assert "training goes on" in err
    run = open_run(tmp_path / "run.db")
    np.testing.assert_array_equal(run.steps.norm, np.arange(len(run)))
    assert 0 < len(run) < 5000
    said = f"On record are {len(run):,} of at least 5,000 steps: recording stopped, "
    assert said in verdict(run, []).sentence
    assert "ended" in run.info


AS_NOBODY = """
import os, sys, tempfile, threading, warnings, linecache, shutil
import numpy as np
from steadygrad.runlog import RunWriter, StepRecord, open_run

if os.geteuid() == 0:  # permissions do not bind root
    os.setgid(65534)
    os.setuid(65534)
assert not os.access(os.path.dirname(sys.argv[1]), os.W_OK)
"""


def read_only(folder: Path) -> None:
    folder.chmod(
        stat.S_IRUSR | stat.S_IXUSR | stat.S_IRGRP | stat.S_IXGRP | stat.S_IROTH | stat.S_IXOTH
    )


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that another user could reach, which pytest's own is not."""
    made = Path(tempfile.mkdtemp(prefix="steadygrad-test-"))
    made.chmod(0o755)
    yield made
    made.chmod(0o755)
    shutil.rmtree(made)


def test_a_read_only_folder_warns_once_and_the_training_goes_on(
    start_python: Start, folder: Path
) -> None:
    read_only(folder)
    script = AS_NOBODY + (
        "writer = RunWriter(sys.argv[1])\n"
        "for step in range(10):\n"
        "    writer.write_step(StepRecord(step), [], [], [], [], [])\n"
        "writer.close()\n"
        "print('trained')\n"
    )
    process = start_python(script, folder / "run.db")
    out, err = process.communicate(timeout=HANGS)
    assert (process.returncode, out) == (0, "trained\n"), err
    assert err.count("RecordingWarning") == 1
    assert "ermission denied" in err


READ = (
    AS_NOBODY
    + """
run = open_run(sys.argv[1])
print(len(run), len(run.steps), run.tensor_norms.shape[0])
"""
)


@pytest.mark.parametrize("left", ["finished", "killed", "killed, without -shm", "live"])
def test_a_run_in_a_read_only_folder_opens(left: str, start_python: Start, folder: Path) -> None:
    path = folder / "run.db"
    if left == "finished":
        start_python(END.format(ending=""), path).communicate(timeout=HANGS)
    else:
        writing = start_python(TRAIN, path, "WAL")
        wait_for_steps(path)
        assert writing.poll() is None
    if left.startswith("killed"):
        writing.kill()
        writing.communicate()
        assert (folder / "run.db-wal").stat().st_size > 0
    if left.endswith("-shm"):
        (folder / "run.db-shm").unlink()
    expected = len(open_run(path))
    if left.endswith("-shm"):
        (folder / "run.db-shm").unlink(missing_ok=True)
    names = sorted(os.listdir(folder))
    for shared in folder.iterdir():  # run files are private: their owner shares them
        shared.chmod(0o644)
    read_only(folder)
    process = start_python(READ, path)
    out, err = process.communicate(timeout=HANGS)
    assert process.returncode == 0, err
    seen = [int(number) for number in out.split()]
    assert seen[0] == seen[1] == seen[2] >= expected > 0
    assert sorted(os.listdir(folder)) == names


def test_the_module_is_what_the_subprocesses_use() -> None:
    # a negative control: the scripts above would pass on nothing if they ran another Python
    out = subprocess.run(
        [sys.executable, "-c", "import steadygrad.runlog as r; print(r.__file__)"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    import steadygrad.runlog

    assert out.stdout.strip() == steadygrad.runlog.__file__
