"""`%%steadygrad`: observe one cell of a notebook as `steadygrad run` observes a script.

The cell runs in the notebook's own namespace. When it is over, libraries are as they were before;
only what the cell itself has made of JAX (transformations, compiled functions) goes on telling
nobody.
"""

from __future__ import annotations

import argparse
import ast
import os
import shlex
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from steadygrad.errors import SteadyGradError
from steadygrad.launch.cell_words import Words, words_of
from steadygrad.launch.in_the_source import places_in_cell
from steadygrad.launch.plan import Plan, default_output
from steadygrad.launch.session import Session
from steadygrad.launch.undoing import undo_all
from steadygrad.live.session import close_card, follow
from steadygrad.live.shell import Shell, name_of_source
from steadygrad.paths import next_free
from steadygrad.text import listed, printable
from steadygrad.vocabulary import ON_NONFINITE

if TYPE_CHECKING:
    from steadygrad.runlog import RunWriter

MAGIC = "steadygrad"


def load_ipython_extension(shell: Any) -> None:
    """Make ``%%steadygrad`` known to IPython; what ``%load_ext steadygrad`` calls.

    Args:
        shell: IPython's.
    """

    def steadygrad(line: str, cell: str) -> Any:
        __tracebackhide__ = True
        return observe(shell, line, cell)

    steadygrad.__doc__ = _parser().format_help()
    shell.register_magic_function(steadygrad, "cell", MAGIC)


class CellSession(Session):
    """One observed cell.

    Args:
        plan: what was asked for.
        text: the cell's code.
    """

    def __init__(self, plan: Plan, text: str) -> None:
        super().__init__(plan)
        self._text = text

    def start(self) -> None:
        """Set the hooks, which `finish` takes out: the kernel goes on."""
        self._watch_frameworks()

    def finish(self) -> None:
        """Close the run file, and leave the libraries as they were."""
        try:
            self._conclude()
        finally:
            self._gave_up = True  # what the cell has made of JAX opens no run file later
            Session.current = None
            self.guarded("a library is not as it was", undo_all)

    def words(self) -> Words:
        """What is said of the run."""
        return words_of(self)

    def _open(self, rank: int | None) -> RunWriter:
        writer = super()._open(rank)
        follow(writer)
        return writer

    def _close(self, writer: RunWriter) -> None:
        self.guarded("a library is not as it was", undo_all)  # handles hand over their last steps
        close_card(writer, "" if self.exit == "ok" else str(self.exit))
        super()._close(writer)

    def _first_facts(self) -> dict[str, Any]:
        return {**super()._first_facts(), "observed_by": "cell", "script": self.plan.cell}

    def _places(self) -> list[dict[str, str | int]]:
        return places_in_cell(self._text, self.plan.cell)


def observe(shell: Shell, line: str, cell: str) -> Any:
    """Run a cell and observe it.

    Args:
        shell: IPython's.
        line: what stands behind ``%%steadygrad``.
        cell: the lines below it.

    Returns:
        The value of the cell's last expression, as without us.

    Raises:
        UsageError: of IPython's, for words that cannot be read.
        BaseException: whatever the cell raises.
    """
    __tracebackhide__ = True
    asked = _read(line)
    text = f"# %%{MAGIC} {line}\n{cell}"  # the magic's own line counts, as it does on the page
    number = _number_of_cell(shell)
    run = _compiled(shell, text, number)
    if Session.current is not None:
        print(f"steadygrad: {_observed_already(asked, Session.current)}", file=sys.stderr)
        return run()
    name = f"Cell In[{number}]"
    plan = Plan(
        target=name,
        cell=name,
        out=default_output() if asked.out is None else next_free(os.path.abspath(asked.out)),
        clip=asked.clip,
        on_nonfinite=asked.on_nonfinite,
        find_nan=asked.find_nan,
        folder=os.getcwd(),
        quiet=asked.quiet,
    )
    session = CellSession(plan, text)
    session.start()
    try:
        value = run()
    except BaseException as error:
        session.ended(error)
        _conclude(shell, session)
        raise
    session.ended(None)
    _conclude(shell, session)
    return value


def _observed_already(asked: argparse.Namespace, session: Session) -> str:
    """Why a cell inside of what is observed gets no run file of its own, and what to type."""
    plan = session.plan
    if plan.cell:
        where, to_do = f"inside of {plan.cell}", f"take one of the two %%{MAGIC} away"
    else:
        script = [*(["-m"] if plan.as_module else []), plan.target, *plan.shown_arguments]
        where, to_do = "under `steadygrad run`", f"type: {shlex.join(['python', *script])}"
    options = {"--out": asked.out, "--clip": asked.clip, "--on-nonfinite": asked.on_nonfinite}
    own = [f"{name} {value}" for name, value in options.items() if value is not None]
    own += ["--find-nan"] * asked.find_nan
    ignored = f"its own {listed(own)} does not count" if own else "it has no file of its own"
    file = os.path.relpath(session.path or plan.out)
    return printable(
        f"this cell runs {where}, which records its steps in {file}, and {ignored}. "
        f"To have it observed by itself {to_do}"
    )


def _conclude(shell: Shell, session: CellSession) -> None:
    try:
        session.finish()
        if not session.plan.quiet:
            words = session.words()
            shell.display_pub.publish(
                {"text/html": words.page, "text/plain": words.text}, transient={}
            )
    except Exception as error:  # a fault of ours is said, and is none of the cell's
        session._last_resort(error)


def _number_of_cell(shell: Shell) -> int:
    """The number in front of the cell that is running: its code is among our callers."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        name = name_of_source(frame.f_code.co_filename)
        if name.startswith("Cell In["):
            return int(name.removeprefix("Cell In[").removesuffix("]"))
        frame = frame.f_back
    return shell.execution_count


def _compiled(shell: Any, text: str, number: int) -> Callable[[], Any]:
    """The cell as IPython would run it; its last expression's value is handed back.

    Raises:
        SyntaxError: it is no Python.
    """
    __tracebackhide__ = True
    below = text.partition("\n")[2].lstrip()
    # a magic below ours is one only where it comes first; it counts the lines below it itself
    python = shell.transform_cell(below if below.startswith("%%") else text)
    file = shell.compile.cache(python, number, raw_code=text)
    tree = shell.transform_ast(ast.parse(python, file))
    last = None
    if tree.body and isinstance(tree.body[-1], ast.Expr) and not python.rstrip().endswith(";"):
        last = tree.body.pop()
    first = shell.compile(tree, file, "exec")
    value = None if last is None else shell.compile(ast.Expression(last.value), file, "eval")

    def run() -> Any:
        __tracebackhide__ = True
        exec(first, shell.user_ns)
        return None if value is None else eval(value, shell.user_ns)

    return run


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in IPython's own way, and never ends the process."""

    def error(self, message: str) -> NoReturn:
        from IPython.core.error import UsageError

        raise UsageError(f"%%{MAGIC}: {message}")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog=f"%%{MAGIC}",
        description="Observe this cell's training, and say what to change.",
        add_help=False,
    )
    parser.add_argument("--clip", metavar="SPEC", help="replace the cell's own clip calls")
    parser.add_argument(
        "--find-nan", action="store_true", help="say where the first NaN came from (PyTorch)"
    )
    parser.add_argument("--on-nonfinite", choices=ON_NONFINITE, help="as attach has it")
    parser.add_argument("--out", metavar="RUN.db", help="the run file; the next free name")
    parser.add_argument("-q", "--quiet", action="store_true", help="no words at the end")
    return parser


def _read(line: str) -> argparse.Namespace:
    __tracebackhide__ = True
    from IPython.core.error import UsageError

    try:
        asked = _parser().parse_args(shlex.split(line))
        if asked.clip is not None:
            from steadygrad.policies import parse

            parse(asked.clip)
    except (SteadyGradError, ValueError) as error:
        raise UsageError(f"%%{MAGIC}: {error}") from None
    return asked
