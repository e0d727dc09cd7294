"""What the end of a run of 1,000,000 steps of 300 tensors costs: its closing words, and `diagnose`.

``python -m benchmarks.long_run [FILE]`` makes the run file (800 MB, two minutes; a temporary one by
default): a sixteenth by a `RunWriter`, the rest copies of that. Each reader is a process of its
own. Seconds by the clock, which others on the machine lengthen, and of processor time.
"""

from __future__ import annotations

import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from steadygrad import diagnose
from steadygrad.launch.plan import Plan
from steadygrad.launch.session import Session
from steadygrad.launch.verdict import last_words
from steadygrad.runlog import RunWriter, StepRecord, TensorInfo, encode, open_run
from steadygrad.runlog.records import STEP_DTYPE

WRITTEN, COPIES, TENSORS = 62_500, 16, 300
READERS = ("closing words", "diagnose")


def make(path: Path) -> None:
    """Write a healthy run."""
    rng = np.random.default_rng(0)
    levels = np.exp(rng.standard_normal(TENSORS))
    pool = np.exp(0.3 * rng.standard_normal((512, TENSORS))) * levels
    zeros = np.zeros(TENSORS, np.int64)
    with RunWriter(path, info={"framework": "torch", "policy": "none"}) as writer:
        infos = [TensorInfo(f"layer{i}.weight", (64, 64), position=i) for i in range(TENSORS)]
        ids = np.array(writer.add_tensors(infos))
        for step in range(WRITTEN):
            norms = pool[rng.integers(512)]
            loss = 2 - step / (WRITTEN * COPIES) + 0.01 * float(rng.standard_normal())
            record = StepRecord(step, loss=loss, norm=float(np.sqrt((norms**2).sum())))
            writer.write_step(record, ids, norms, norms * 0.1, zeros, zeros)
            while not step % 2000 and not writer.flush():
                pass
    connection = sqlite3.connect(path)
    chunks = connection.execute("SELECT first_row, rows, data FROM step_chunks").fetchall()
    for copy in range(1, COPIES):
        moved = WRITTEN * copy
        for first, rows, data in chunks:
            table = encode.decode_steps(data, rows, STEP_DTYPE.names or ())
            table["step"] += moved
            table["time"] += 1000 * copy
            table["loss"] -= copy / COPIES
            values = (first + moved, rows, encode.encode_steps(table))
            connection.execute("INSERT INTO step_chunks VALUES (?, ?, ?)", values)
        connection.execute(
            "INSERT INTO figures SELECT first_row + ?, layout, rows, offsets, norms, max_abs, "
            "zeros, exact_norms, exact_max_abs, nonfinite FROM figures WHERE first_row < ?",
            (moved, WRITTEN),
        )
    connection.commit()
    connection.close()


def read(what: str, path: Path) -> None:
    """Be one reader, and say what it cost."""
    clock, processor = time.perf_counter(), time.process_time()
    if what == "diagnose":
        diagnose(open_run(path))
    else:
        session = Session(Plan("train.py", out=str(path)))
        session.path = str(path)
        last_words(session)
    clock, processor = time.perf_counter() - clock, time.process_time() - processor
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{what}: {clock:.2f} s, of processor time {processor:.2f} s; {most:.0f} MB")


def main() -> None:
    """Make the file, and have it read."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(sys.argv[1] if len(sys.argv) > 1 else f"{folder}/long.db")
        if not path.exists():
            make(path)
        print(f"{len(open_run(path)):,} steps, {path.stat().st_size / 1e6:.0f} MB")
        for what in READERS:
            subprocess.run([sys.executable, __file__, what, str(path)], check=True)


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in READERS:
        read(sys.argv[1], Path(sys.argv[2]))
    else:
        main()
