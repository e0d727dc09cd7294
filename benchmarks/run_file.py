"""What a step takes of a run file, and what the plain table `steps` takes of that.

``python -m benchmarks.run_file`` prints bytes a step with and without the table, and the
processor time of the thread that writes them, which no training step waits for.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
import time
from pathlib import Path

import numpy as np

from steadygrad.runlog import RunWriter, StepRecord, TensorInfo, open_run
from steadygrad.runlog.schema import ADD_PLAIN_STEP, PLAIN_STEPS

SIZES = ((300, 4000), (150, 4000), (4, 40_000))


def make(path: Path, tensors: int, steps: int) -> float:
    """Write a run as a training has it; gives the microseconds a step of the writing thread."""
    rng = np.random.default_rng(0)
    levels = np.exp(rng.normal(scale=3.0, size=tensors))
    noise = np.exp(rng.normal(scale=0.3, size=(500, tensors)))
    zeros, none = rng.integers(0, 50, size=(500, tensors)), np.zeros(tensors, np.int64)
    writer, spent = RunWriter(path), 0.0
    consume = writer._recorder._consume

    def timed(batch: list[object]) -> None:
        nonlocal spent
        began = time.thread_time()
        consume(batch)  # type: ignore[arg-type]
        spent += time.thread_time() - began

    writer._pump._consume = timed  # type: ignore[assignment]
    infos = [TensorInfo(f"layer{place}.weight", (10, 100)) for place in range(tensors)]
    ids = np.array(writer.add_tensors(infos))
    for step in range(steps):
        norms = levels * noise[step % 500]
        total = float(np.linalg.norm(norms))
        record = StepRecord(
            step,
            loss=float(rng.random()),
            norm=total,
            threshold=1.0,
            coef=min(1.0, 1 / total),
            action="clip" if total > 1 else "none",
            lr=1e-3 * (1 - step / steps),
        )
        writer.write_step(record, ids, norms, 0.1 * norms, none, zeros[step % 500])
        if step % 500 == 499:
            writer.flush()  # faster than any training: the queue would be full
    writer.close()
    return 1e6 * spent / steps


def without_the_table(path: Path) -> int:
    """The size of the file, had it no plain steps."""
    copy = path.with_suffix(".copy")
    shutil.copyfile(path, copy)
    with contextlib.closing(sqlite3.connect(copy)) as connection:
        connection.execute("DROP TABLE steps")
        connection.execute("VACUUM")
    return copy.stat().st_size


def inserting(path: Path) -> float:
    """Microseconds a step of filling the table alone, in batches as the writer has them."""
    rows = np.asarray(open_run(path).steps).tolist()
    with contextlib.closing(sqlite3.connect(path.with_suffix(".plain"))) as connection:
        connection.execute(PLAIN_STEPS)
        began = time.thread_time()
        for first in range(0, len(rows), 50):
            connection.executemany(ADD_PLAIN_STEP, rows[first : first + 50])
        return 1e6 * (time.thread_time() - began) / len(rows)


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        for tensors, steps in SIZES:
            path = Path(folder, f"{tensors}.db")
            writing = make(path, tensors, steps)
            whole, bare = path.stat().st_size / steps, without_the_table(path) / steps
            print(
                f"{tensors} tensors: {whole:.0f} B a step, {whole - bare:.0f} of them the table "
                f"({(whole - bare) / bare:.1%} more); writing {writing:.0f} us a step, "
                f"{inserting(path):.1f} of them the table"
            )


if __name__ == "__main__":
    main()
