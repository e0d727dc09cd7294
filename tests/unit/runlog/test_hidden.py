"""Threads that no script can wait for, count, or be hit by a signal through."""

from __future__ import annotations

import _thread
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from steadygrad.errors import RecordingWarning
from steadygrad.runlog import RunWriter, StepRecord, TensorInfo, open_run
from steadygrad.runlog.hidden import HiddenThread, stay_hidden
from steadygrad.runlog.items import Head
from steadygrad.sinks import open_sink

JOIN_ALL = """
import sys, threading, time
from concurrent.futures import ThreadPoolExecutor
{begin}
def join_all():
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            thread.join()
    while threading.active_count() > 1:
        time.sleep(0.01)
threading.Thread(target=train).start()
join_all()
with ThreadPoolExecutor(2) as pool:
    list(pool.map(lambda _: train(), range(2)))
join_all()
print("all threads joined", sys.gettrace() is None)
"""

BARE = """
import numpy as np
from steadygrad.runlog import RunWriter, StepRecord, TensorInfo
from steadygrad.sinks import open_sink
writer = RunWriter(sys.argv[1])
writer.add_sink(open_sink(f"csv:{sys.argv[1]}.csv"))
ids = writer.add_tensors([TensorInfo("w", (2,))])
def train():
    for step in range(5):
        writer.write_step(StepRecord(step, norm=1.0), ids, [1.0], [1.0], [0], [0])
        time.sleep(0.1)
"""

TORCH = """
import torch
model = torch.nn.Linear(4, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
lock = threading.Lock()
def train():
    for _ in range(5):
        with lock:
            optimizer.zero_grad()
            model(torch.ones(8, 4)).sum().backward()
            optimizer.step()
"""


def run_python(*words: object) -> str:
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}  # NumPy starts threads for more
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=240, check=False, env=alone
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_script_that_joins_all_threads_ends_and_loses_no_step(tmp_path: Path) -> None:
    script = tmp_path / "join_all.py"
    script.write_text(JOIN_ALL.format(begin=BARE))
    assert run_python(script, tmp_path / "run.db") == "all threads joined True\n"
    assert len(open_run(tmp_path / "run.db")) == 15
    assert len((tmp_path / "run.db.csv").read_text().splitlines()) == 16


def test_so_does_one_that_is_observed_and_recorded_by_attach(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    attach = (
        "import steadygrad.torch as sg\n"
        f"sg.attach(optimizer, clip='norm:1.0', run={str(tmp_path / 'attach.db')!r})\n"
    )
    (tmp_path / "attached.py").write_text(JOIN_ALL.format(begin=TORCH + attach))
    (tmp_path / "plain.py").write_text(JOIN_ALL.format(begin=TORCH))
    run = ("-m", "steadygrad", "run", "--out", tmp_path / "run.db", tmp_path / "plain.py")
    with ThreadPoolExecutor(2) as both:
        said = both.map(lambda words: run_python(*words), [(tmp_path / "attached.py",), run])
        assert list(said) == ["all threads joined True\n"] * 2
    assert len(open_run(tmp_path / "attach.db")) == 15
    assert len(open_run(tmp_path / "run.db")) == 15


def test_a_library_that_asks_for_the_current_thread_lists_ours_for_a_moment_only() -> None:
    seen: list[bool] = []
    end = threading.Event()

    def work() -> None:
        logging.getLogger("quiet").debug("no line, yet it looks")
        threading.current_thread()
        seen.append(any(t.ident == _thread.get_ident() for t in threading.enumerate()))
        stay_hidden()
        seen.append(any(t.ident == _thread.get_ident() for t in threading.enumerate()))
        end.wait(10)

    before = threading.active_count()
    thread = HiddenThread(work)
    while len(seen) < 2:
        time.sleep(0.001)
    assert threading.active_count() == before
    assert seen == [True, False]
    assert thread.alive
    assert not thread.join(0.01)
    end.set()
    assert thread.join(10)


def test_a_thread_of_somebody_else_stays_listed() -> None:
    listed: list[bool] = []

    def work() -> None:
        stay_hidden()
        listed.append(thread in threading.enumerate())  # current_thread() would list it again

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert listed == [True]


@pytest.mark.skipif(not hasattr(signal, "sigwait"), reason="the system has no sigwait")
def test_a_signal_that_the_script_waits_for_reaches_the_script(tmp_path: Path) -> None:
    script = tmp_path / "wait.py"
    script.write_text(
        "import os, signal, sys, time\n"
        + BARE
        + "before = signal.pthread_sigmask(signal.SIG_BLOCK, [])\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])\n"
        "time.sleep(0.3)\n"
        "os.kill(os.getpid(), signal.SIGUSR1)\n"
        "time.sleep(0.3)\n"
        "print(signal.sigwait([signal.SIGUSR1]).name, sorted(before))\n"
    )
    assert run_python(script, tmp_path / "run.db") == "SIGUSR1 []\n"


def test_where_no_thread_can_be_had_the_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> int:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_thread, "start_new_thread", refuse)
    with pytest.warns(RecordingWarning, match="can't start new thread"):
        writer = RunWriter(tmp_path / "run.db")
    ids = writer.add_tensors([TensorInfo("w", (2,))])
    writer.write_step(StepRecord(0), ids, [1.0], [1.0], [0], [0])
    assert not writer.recording
    assert not writer.flush(0.1)
    writer.close()
    sink = open_sink(f"csv:{tmp_path}/steps.csv")
    with pytest.warns(RecordingWarning, match="sending to csv"):
        sink.begin(Head(None, {}, (), lambda kind, data, step: None))
    sink.feed([])
    sink.finish(0.1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_forked_child_joins_nothing(tmp_path: Path) -> None:
    script = tmp_path / "fork.py"
    script.write_text(
        "import os, sys, threading, time\n" + BARE + "train()\n"
        "pid = os.fork()\n"
        "if not pid:\n"
        "    writer.close()\n"
        "    os._exit(threading.active_count())\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    assert run_python(script, tmp_path / "run.db") == "1\n"
    assert len(open_run(tmp_path / "run.db")) == 5


FORKING = """
import os, sys, warnings
threads = []
def count():
    threads.append(len(os.listdir("/proc/self/task")))
os.register_at_fork(before=count)  # older than ours, so called after it
warnings.simplefilter("error", DeprecationWarning)
from steadygrad.runlog import RunWriter, StepRecord, TensorInfo
writer = RunWriter(sys.argv[1])
ids = writer.add_tensors([TensorInfo("w", (2,))])
for step in range(60):
    writer.write_step(StepRecord(step, norm=1.0), ids, [1.0], [1.0], [0], [0])
    if step % 3 == 0:
        child = os.fork()
        if not child:
            writer.write_step(StepRecord(99, norm=1.0), ids, [1.0], [1.0], [0], [0])
            writer.close()
            if step == 0 and not os.fork():
                os._exit(0)
            os._exit(len(os.listdir("/proc/self/task")) - 1)  # none begins in a child that forks
        assert os.waitpid(child, 0)[1] == 0
assert writer.recording
writer.close()
print(set(threads))
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc")
def test_a_fork_finds_no_thread_of_ours_and_costs_no_step(tmp_path: Path) -> None:
    told = run_python("-c", FORKING, tmp_path / "run.db")
    assert told == "{1}\n"
    assert open_run(tmp_path / "run.db").steps["step"].tolist() == list(range(60))
