"""One observed process: from before the script's first line to our last words.

Our `atexit` function is registered before the script's, hence runs after all of
them, after non-daemon threads have ended, and whether the script ended or raised.
Nothing here may raise into the script: what goes wrong is kept and said at the end.
What is not needed before the script's first line is imported where it is: a start costs as little
as it can.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

from steadygrad.launch import children
from steadygrad.launch.blame import cause, raised_by_handler
from steadygrad.launch.imports import watch
from steadygrad.launch.plan import Plan, rank_of
from steadygrad.launch.process import become, stay_interrupted

if TYPE_CHECKING:
    from steadygrad.launch.contracts import Observer
    from steadygrad.launch.jax_script.install import JaxScript
    from steadygrad.launch.optimizers import OptimizerList
    from steadygrad.launch.tensorflow_script.install import TensorFlowPatches
    from steadygrad.runlog import RunWriter


class Session:
    """One observed run while it goes on.

    Attributes:
        plan: what was asked for.
        path: the run file; empty until the first step is recorded.
        frameworks: names of the frameworks that the script imported.
        observers: what observes the frameworks in use.
        troubles: what went wrong on our side, as sentences.
        overhead: seconds that observing cost the script.
        attached: classes of the optimizers that the script attaches steadygrad to itself.
        exit: how the script ended.
        seconds: how long it took, once it is over.
        current: the one that observes this process; None for none.
    """

    current: ClassVar[Session | None] = None

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.began = time.time()
        self.clock = time.perf_counter()
        self.pid = os.getpid()
        self.path = ""
        self.frameworks: list[str] = []
        self.observers: list[Observer] = []
        self.troubles: list[str] = []
        self.overhead = 0.0
        self.attached: set[str] = set()
        self.exit: str | int = "ok"
        self.seconds = 0.0
        self._concluded_in = 0
        self._interrupted = False
        self._writer: RunWriter | None = None
        self._gave_up = False
        self._told_by_first_rank = False

    def start(self) -> None:
        """Set the hooks, before the script's first line."""
        if self.plan.seed is not None:
            from steadygrad.launch.seeds import sow

            sow(self.plan.seed)
        self._watch_frameworks()
        watch({"multiprocessing.spawn": lambda m: children.carry_into_spawned(m, self.plan)})
        atexit.register(self.finish)
        self._follow_os_exit()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forked)

    def _watch_frameworks(self) -> None:
        Session.current = self
        watch(
            {
                "torch": self._guarded("torch", _observe_torch),
                "tensorflow": self._guarded("tensorflow", _observe_tensorflow),
                "steadygrad.tensorflow": self.guarded_import(partial(_observe_dropins, self)),
                "keras": self._guarded("keras", _observe_keras),
                "tf_keras": self._guarded("tf_keras", _observe_tf_keras),
                "jax": self._guarded("jax", lambda _, module: self._jax.jax_imported(module)),
                "optax": lambda module: self._jax.optax_imported(module),
                "flax.training.dynamic_scale": self.guarded_import(
                    lambda module: self._jax.scale_imported(module)
                ),
            }
        )

    @cached_property
    def optimizers(self) -> OptimizerList:
        """Those of all frameworks."""
        from steadygrad.launch.optimizers import OptimizerList

        return OptimizerList(self.writer)

    @cached_property
    def _jax(self) -> JaxScript:
        from steadygrad.launch.jax_script.install import JaxScript

        return JaxScript(self)

    def _follow_os_exit(self) -> None:
        """Close the run file before `os._exit`, by which forked workers of multiprocessing end."""
        leave = os._exit

        def _exit(status: int) -> None:
            if self._writer is not None:
                self.exit = status or "ok"
                self._conclude()
            leave(status)

        os._exit = _exit  # type: ignore[assignment]

    def ended(self, error: BaseException | None) -> None:
        """Note how the script ended."""
        if isinstance(error, SystemExit):
            code = error.code
            self.exit = (code or "ok") if code is None or isinstance(code, int) else 1
        elif error is not None:
            self.exit = type(error).__name__
            self._interrupted = type(error) is KeyboardInterrupt

    def trouble(self, what: str, error: BaseException) -> None:
        """Keep an error of ours for the last words, with whose fault it is.

        What a signal handler of the script has raised in the middle of ours is raised again: it is
        for the script, which may wait for it to end something.
        """
        if self._concluded_in != os.getpid() and raised_by_handler(error):
            raise error
        self.mention(f"{what}{cause(error)}: {type(error).__name__}: {error}")

    def guarded(self, what: str, act: Callable[..., object], *arguments: object) -> None:
        """Call ``act``; what it raises is a trouble of ours, not the script's."""
        try:
            act(*arguments)
        except Exception as error:
            self.trouble(what, error)

    def mention(self, sentence: str) -> None:
        """Keep a sentence for the last words, once."""
        if sentence not in self.troubles:
            self.troubles.append(sentence)

    def writer(self) -> RunWriter | None:
        """The run file's writer, made at the first call; None where there can be none."""
        if self._writer is None and not self._gave_up:
            from steadygrad.processes import place_in_job

            place = place_in_job()
            rank = None if place is None else place.rank
            if rank:  # rank 0 writes for all of them
                self._gave_up = self._told_by_first_rank = True
                return None
            try:
                self._writer = self._open(rank)
            except Exception as error:
                self._gave_up = True
                self.trouble("the run is not recorded", error)
        return self._writer

    def _open(self, rank: int | None) -> RunWriter:
        from steadygrad.launch.opening import open_run_file

        if rank is not None:  # the file of the job, whoever started this process
            self.plan = replace(self.plan, process="")
        self.path, writer = open_run_file(self.plan, rank, self._first_facts())
        writer.leave_by(self._conclude)
        if self.plan.logs or self.plan.stop_on:
            from steadygrad.launch.loggers import add_loggers

            add_loggers(writer, self.plan, rank or rank_of(os.environ))
        # `finish` closes it, which stands before the script's own exit functions and so runs last
        writer.stay_open_at_exit()
        return writer

    def _first_facts(self) -> dict[str, object]:
        from steadygrad.launch.opening import first_facts

        return first_facts(self.plan, self.began)

    def observe(self, observer: Observer) -> None:
        """Count an observer in: its steps are the run's, and it is told when the script is over."""
        self.observers.append(observer)

    def _guarded(
        self, name: str, observe: Callable[[Session, ModuleType], None]
    ) -> Callable[[ModuleType], None]:
        def imported(module: ModuleType) -> None:
            self.frameworks.append(name)
            try:
                observe(self, module)
            except Exception as error:
                self.trouble(f"{name} is not observed", error)

        return imported

    def guarded_import(self, observe: Callable[[ModuleType], None]) -> Callable[[ModuleType], None]:
        """A function to call with an imported module; what goes wrong in it is told at the end."""

        def imported(module: ModuleType) -> None:
            try:
                observe(module)
            except Exception as error:
                self.trouble(f"{module.__name__} is not observed", error)

        return imported

    def _forked(self) -> None:
        """In a forked child: a file of its own if it trains, and no words."""
        self.plan = children.child_of(self.plan, children.name_of_this_process())
        self._writer, self._gave_up, self.path = None, False, ""
        self._told_by_first_rank = False
        self.__dict__.pop("optimizers", None)

    def finish(self) -> None:
        """Say the last words."""
        try:
            self._conclude()
            if self.plan.speaks and not self.plan.quiet and os.getpid() == self.pid:
                self._speak()
        except Exception as error:
            self._last_resort(error)
        if self._interrupted:
            stay_interrupted()

    def _conclude(self) -> None:
        """Write what is known only at the end, and close the run file; once."""
        if self._concluded_in == os.getpid():
            return
        self._concluded_in = os.getpid()
        self.seconds = time.perf_counter() - self.clock
        try:
            for observer in self.observers:
                self.guarded("the last steps are not recorded", observer.finish)
            if self.plan.find_nan and "torch" not in self.frameworks:
                self.mention("--find-nan works on PyTorch only, and this script does not use it")
            if self._told_by_first_rank and self.exit != "ok":
                from steadygrad.launch.job import tell_end

                tell_end(self.exit)
            if self.plan.resumes:
                self._tell_of_resuming()
            if self._writer is not None:
                self._close(self._writer)
        except Exception as error:
            self.trouble("the end of the run is not recorded", error)

    def _tell_of_resuming(self) -> None:
        from steadygrad.launch.resuming import trouble_at_the_end

        trouble = trouble_at_the_end()
        if trouble:
            self.mention(trouble)

    def _close(self, writer: RunWriter) -> None:
        from steadygrad.launch.job import ends_told

        self.overhead += writer.overhead_seconds
        writer.update_info(
            lint=self._places(),
            exit="stopped" if writer.stop_reason else self.exit,
            ended=time.time(),
            wall_seconds=self.seconds,
            overhead_seconds=self.overhead,
            **({} if "framework" in writer.info else self._used_framework()),
            **({"ranks_ended": ends} if (ends := ends_told()) else {}),
            **({"troubles": self.troubles} if self.troubles else {}),
        )
        writer.close()

    def _used_framework(self) -> dict[str, str]:
        """The framework of a run without a step, as its file names it.

        Keras stands on another one, and beside JAX others are there to load data.
        """
        names = {"keras": "keras", "tf_keras": "tensorflow", "jax": "jax"}
        names.update(tensorflow="tensorflow", torch="torch")
        used = [name for module, name in names.items() if module in self.frameworks]
        return {"framework": used[0]} if used else {}

    def _places(self) -> list[dict[str, str | int]]:
        """Mistakes that can be read off the source."""
        from steadygrad.launch.in_the_source import places  # the script is over: time to load it

        return places(self.plan)

    def _speak(self) -> None:
        from steadygrad.launch.verdict import last_words

        for stream in (sys.stdout, sys.stderr):
            # closed, or a pipe that nobody reads: the interpreter says so itself
            with contextlib.suppress(AttributeError, OSError, ValueError):
                stream.flush()
        print(last_words(self), file=sys.__stderr__, flush=True)

    def _last_resort(self, error: Exception) -> None:
        if self.plan.speaks and not self.plan.quiet and sys.__stderr__ is not None:
            from steadygrad.text import printable

            where = f" The run file is {self.path}." if self.path else ""
            what = f"{type(error).__name__}: {error}"
            words = f"steadygrad: no verdict{cause(error)} ({what}).{where}"
            print(printable(words), file=sys.__stderr__)


def launch(plan: Plan) -> None:
    """Run a script and observe it.

    Args:
        plan: what to run and how.

    Raises:
        BaseException: whatever the script raises.
    """
    rank = rank_of(os.environ)
    if rank is not None:
        plan = replace(plan, speaks=rank == 0)
    session = Session(plan)
    session.start()
    become(plan, session.ended)


def adopt(**plan: Any) -> None:
    """Observe this process, which an observed one has spawned.

    Args:
        plan: the fields of a `Plan`.
    """
    Session(Plan(**plan)).start()


def _observe_torch(session: Session, module: ModuleType) -> None:
    from steadygrad.launch.torch_script.install import install

    patches = install(session)
    session.observe(patches)
    fsdp1 = "torch.distributed.fsdp.fully_sharded_data_parallel"
    watch(
        {
            fsdp1: session.guarded_import(patches.watch_fsdp1),
            "deepspeed.runtime.engine": session.guarded_import(patches.watch_deepspeed),
        }
    )


def _observe_tensorflow(session: Session, module: ModuleType) -> None:
    from steadygrad.launch.tensorflow_script.install import install

    install(_tensorflow(session), module)


def _observe_dropins(session: Session, module: ModuleType) -> None:
    from steadygrad.launch.tensorflow_script.install import install_dropins

    install_dropins(_tensorflow(session), module)


def _observe_tf_keras(session: Session, module: ModuleType) -> None:
    from steadygrad.launch.tensorflow_script.install import install_tf_keras

    install_tf_keras(_tensorflow(session), module)


def _observe_keras(session: Session, module: ModuleType) -> None:
    from steadygrad.launch.keras_script.install import install

    observer = install(session, module, _tensorflow(session))
    if observer is not None:
        session.observe(observer)


def _tensorflow(session: Session) -> TensorFlowPatches:
    """TensorFlow's patches, whether it, Keras or tf_keras was imported to the end first."""
    from steadygrad.launch.tensorflow_script.install import TensorFlowPatches

    patches = next((one for one in session.observers if isinstance(one, TensorFlowPatches)), None)
    if patches is None:
        patches = TensorFlowPatches(session)
        session.observe(patches)
    return patches
