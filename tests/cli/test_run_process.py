"""A script under `steadygrad run` is the process that it would have been under `python`."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from typing import Any

import pytest

Same = Callable[[Any], Any]

SELF = """
import sys, os, pickle, json
class Point:
    pass
def where():
    frame = sys._getframe(1)
    return frame.f_code.co_filename, frame.f_lineno
spec = __spec__ and (__spec__.name, __spec__.origin)
print(json.dumps([sys.argv, sys.path[:2], __file__, spec, __name__, __package__, where()]))
print(sorted(globals()), type(__loader__).__name__, __doc__, __builtins__.__name__)
print(pickle.loads(pickle.dumps(Point)) is Point, sys.modules["__main__"].Point is Point)
os.chdir("/")
"""


@pytest.mark.parametrize("path", ["sub/own.py", "./sub/own.py", "sub/../sub/own.py"])
def test_a_script_sees_itself(bench: Any, same: Same, path: str) -> None:
    bench.write("sub/own.py", SELF)
    plain = same(bench.both(path, "--out", "x", "-q", "--", "-m"))
    assert json.loads(plain.stdout.splitlines()[0])[0] == [path, "--out", "x", "-q", "--", "-m"]


def test_a_module_sees_itself(bench: Any, same: Same) -> None:
    bench.write("pack/__init__.py", "")
    bench.write("pack/helper.py", "VALUE = 3\n")
    bench.write("pack/train.py", "from .helper import VALUE\nimport sys\nprint(VALUE)\n" + SELF)
    bench.write("pack/__main__.py", "from . import helper\nraise ValueError(helper.VALUE)\n")
    same(bench.both("-m", "pack.train", "--out", "x"))
    assert "ValueError: 3" in same(bench.both("-m", "pack")).stderr
    assert same(bench.both("-m", "pack.absent")).returncode == 1


ENDINGS = {
    "exit": "import sys; print('out'); sys.exit(3)",
    "text": "import sys; sys.exit('some text')",
    "none": "import sys; sys.exit()",
    "chain": """
def inner():
    raise KeyError("k")
try:
    inner()
except KeyError as error:
    raise RuntimeError("outer") from error
""",
    "hook": """
import sys, traceback
def hook(kind, error, trace):
    print("hook", kind.__name__, [f.name for f in traceback.extract_tb(trace)])
sys.excepthook = hook
def deep():
    1 / 0
deep()
""",
    "syntax": "def f(:\n",
    "atexit": """
import atexit, threading, time
atexit.register(print, "script's atexit")
threading.Thread(target=lambda: (time.sleep(0.2), print("thread"))).start()
raise SystemError("x")
""",
    "group": "raise Exception('a') from ImportError('b')",
    "warning": """
import warnings
def old():
    warnings.warn("deprecated thing", DeprecationWarning, stacklevel=2)
old()
""",
    "interrupt": "raise KeyboardInterrupt",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_script_ends_as_it_would(bench: Any, same: Same, ending: str) -> None:
    bench.write("end.py", ENDINGS[ending])
    same(bench.both("end.py"))


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_signals_end_it_as_they_would(bench: Any, same: Same, name: str) -> None:
    code = f"import os, signal, time\nos.kill(os.getpid(), signal.{name})\ntime.sleep(5)\n"
    bench.write("dies.py", code)
    assert same(bench.both("dies.py")).returncode == -signal.Signals[name]


INTERRUPTED = """
from steadygrad.launch import verdict

def last_words(session):
    exec("words = 'words'")  # as where a class with fields is made
    return "words"

verdict.last_words = last_words
raise KeyboardInterrupt
"""


def test_our_words_do_not_hide_that_the_script_was_interrupted(bench: Any) -> None:
    bench.write("end.py", INTERRUPTED)
    done = bench.steadygrad("run", "end.py")
    assert done.stderr.endswith("words\n")
    assert done.returncode == bench.python("end.py").returncode == -signal.SIGINT


LIVES_WITH_OTHERS = """
import argparse, multiprocessing, os, signal, sys
import beside
from multiprocessing import get_context

def work(x):
    return x * beside.FACTOR

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--clip", type=float)
    parser.add_argument("-q", action="store_true")
    print(parser.parse_args())
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    for method in ("fork", "spawn", "forkserver"):
        with get_context(method).Pool(1) as pool:
            print(method, pool.map(work, [1, 2]))
    pid = os.fork()
    if pid == 0:
        print("child", flush=True)
        sys.exit(4)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_a_script_has_arguments_neighbours_and_children(bench: Any, same: Same) -> None:
    bench.write("beside.py", "FACTOR = 10\n")
    bench.write("many.py", LIVES_WITH_OTHERS)
    assert "spawn [10, 20]" in same(bench.both("many.py", "--clip", "2", "-q")).stdout


LOADED = "import sys; print(*sorted(sys.modules))"


@pytest.mark.parametrize("clip", [[], ["--clip", "norm:1.0"]])
def test_nothing_is_loaded_that_could_change_the_script(bench: Any, clip: list[str]) -> None:
    """Only the standard library, click, and modules of ours that need no more."""
    bench.write("loaded.py", LOADED)
    bare = set(bench.python("loaded.py").stdout.split())
    more = set(bench.steadygrad("run", "-q", *clip, "loaded.py").stdout.split()) - bare
    tops = {name.split(".")[0] for name in more}
    assert "steadygrad" in tops
    assert "click" in tops
    foreign = tops - {"steadygrad", "click"} - _standard_library()
    assert foreign == set()


def _standard_library() -> frozenset[str]:
    import sys

    return sys.stdlib_module_names


def test_the_check_of_what_is_loaded_can_fail(bench: Any) -> None:
    bench.write("loaded.py", "import numpy\n" + LOADED)
    assert "numpy" in bench.steadygrad("run", "-q", "loaded.py").stdout.split()


def test_its_own_mistakes_are_told_before_the_script_starts(bench: Any) -> None:
    bench.write("ok.py", "print('ran')")
    bench.write("old.db", "")
    for words, expected in (
        (["absent.py"], "there is no script absent.py"),
        (["--out", "old.db", "ok.py"], "--force"),
        (["--clip", "norm", "ok.py"], "type norm:MAX_NORM"),
        (["--clip", "0.5", "ok.py"], "type norm:0.5"),
        (["--no-such-option", "ok.py"], "No such option"),
        (["."], "is a folder"),
    ):
        done = bench.steadygrad("run", *words)
        assert done.returncode == 2, done.stderr
        assert expected in done.stderr
        assert done.stdout == ""


def test_a_script_without_training_is_told_so_plainly(bench: Any) -> None:
    bench.write("plain.py", "print('hello')")
    done = bench.steadygrad("run", "plain.py")
    assert done.stdout == "hello\n"
    assert done.stderr.startswith("steadygrad: 0 steps seen")
    assert "imported neither torch, nor tensorflow, nor keras, nor jax" in " ".join(
        done.stderr.split()
    )
    assert sorted(path.name for path in bench.folder.iterdir()) == ["plain.py"]
    assert bench.steadygrad("run", "-q", "plain.py").stderr == ""
