"""The command line: one file a subcommand, found by listing this folder.

A subcommand's file is imported only when it is asked for, and imports nothing
beyond click and the standard library at its top: `steadygrad run` has to start
a script before anything that could change it is loaded, and `--help` stays quick.
`run` leaves click before the script starts (`Handover`), so that click never
sees the script's exceptions.
"""

from __future__ import annotations

import functools
import importlib
import os
import pkgutil
import re
from collections.abc import Callable

import click

from steadygrad._version import __version__
from steadygrad.errors import SteadyGradError, UsageError

__all__ = ["Handover", "group", "main"]


class Handover(BaseException):
    """Raised by a subcommand to have `action` called after click is out of the way."""

    def __init__(self, action: Callable[[], None]) -> None:
        super().__init__("this subcommand starts from steadygrad.cli.main()")
        self.action = action


class _Folder(click.Group):
    """A click group whose subcommands are the modules of this folder."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_subcommands())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        module = importlib.import_module(f"{__name__}.{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # `deepspeed --module` and torch.distributed.launch put it there, for the script to read
        if args and re.fullmatch(r"--local[-_]rank=\d+", args[0]):
            ctx.obj = (args[0],)
            args = args[1:]
        try:
            return super().parse_args(ctx, args)
        except click.ClickException as error:
            _make_printable(error)
            raise

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except UsageError as error:
            raise click.UsageError(_printable(str(error))) from error
        except SteadyGradError as error:
            raise click.ClickException(_printable(str(error))) from error
        except click.ClickException as error:  # of what was typed: names of files that do not exist
            _make_printable(error)
            raise
        except BrokenPipeError:  # the reader of our output has left: click ends quietly
            raise
        except OSError as error:
            raise click.ClickException(_printable(_why(error))) from error


@functools.cache  # click asks for it once a subcommand
def _subcommands() -> tuple[str, ...]:
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return tuple(sorted(name.replace("_", "-") for name in names if not name.startswith("_")))


def _make_printable(error: click.ClickException) -> None:
    vars(error)["message"] = _printable(error.message)  # final to a type checker


def _printable(text: str) -> str:
    from steadygrad.text import printable  # only where something is to be said

    return printable(text)


def _why(error: OSError) -> str:
    """An error of the system (a folder that cannot be written, a full disk) in one line."""
    where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
    return f"{where}{error.strerror or error}"


@click.group(cls=_Folder, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="steadygrad")
def group() -> None:
    """Keep training steady: see what gradients do, clip them exactly, know why a run breaks.

    Start with:  steadygrad run train.py
    """


def main() -> None:
    """The `steadygrad` command."""
    action = _dispatch()
    if action is not None:
        action()


def _dispatch() -> Callable[[], None] | None:
    # returned, not called here: inside `except` every exception of the script
    # would be shown as raised "during handling of" the Handover
    try:
        group.main(prog_name="steadygrad")
    except Handover as handover:
        return handover.action
    return None
