"""Launchers of several processes: steadygrad stands behind them, not before.

A launcher starts the script in processes of its own, which nothing here would see. What to type
instead is told, with the words that were typed.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from typing import NamedTuple


class Launcher(NamedTuple):
    """One launcher.

    Attributes:
        words: how its command line begins.
        as_module: its option for a script that is a module.
    """

    words: tuple[str, ...]
    as_module: str


_LAUNCHERS = (
    Launcher(("torchrun",), "-m"),
    Launcher(("python", "-m", "torch.distributed.run"), "-m"),
    Launcher(("python", "-m", "torch.distributed.launch"), "-m"),
    Launcher(("accelerate", "launch"), "-m"),
    Launcher(("accelerate-launch",), "-m"),
    Launcher(("python", "-m", "accelerate.commands.launch"), "-m"),
    Launcher(("deepspeed",), "--module"),
    Launcher(("python", "-m", "deepspeed.launcher.runner"), "--module"),
)


def command_behind_launcher(
    options: Sequence[str], target: str, arguments: Sequence[str], as_module: bool
) -> str:
    """What to type where a launcher was given in place of a script; empty where none was.

    Args:
        options: of `steadygrad run`, as they were typed.
        target: what was to be run.
        arguments: what follows it.
        as_module: the target is a module.

    Example:
        >>> command_behind_launcher([], "torchrun", ["--nproc-per-node=2", "train.py", "x"], False)
        'torchrun --nproc-per-node=2 -m steadygrad run train.py x'
    """
    start = ["python", "-m", target] if as_module else [os.path.basename(target)]
    typed = [*start, *arguments]
    launcher = next(
        (one for one in _LAUNCHERS if tuple(typed[: len(one.words)]) == one.words), None
    )
    if launcher is None:
        return ""
    count = len(launcher.words)
    rest = typed[count:]
    place = next((i for i, word in enumerate(rest) if word.endswith(".py")), None)
    module = next((i for i, word in enumerate(rest) if word in ("-m", "--module")), None)
    own = ["steadygrad", "run", *options]
    if module is not None and (place is None or module < place):
        words = [*rest[:module], launcher.as_module, *own, "-m", *rest[module + 1 :]]
    elif place is not None:
        words = [*rest[:place], launcher.as_module, *own, *rest[place:]]
    else:
        words = [*rest, launcher.as_module, *own, "train.py"]
    return shlex.join([*typed[:count], *words])
