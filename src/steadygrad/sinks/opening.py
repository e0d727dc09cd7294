"""Sinks by name: a module of `loggers/` or `listeners/` is a kind, imported when it is asked for.

Reading a spec needs the standard library alone, so that `steadygrad run` can refuse one
before the script starts.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING

from steadygrad.errors import UsageError
from steadygrad.sinks import listeners
from steadygrad.sinks.names import formats

if TYPE_CHECKING:
    from steadygrad.runlog import RunWriter
    from steadygrad.sinks.base import Sink


def kinds() -> list[str]:
    """The names `open_sink` knows.

    Example:
        >>> "tensorboard" in kinds()
        True
    """
    return sorted([*formats(), *_names(listeners)])


def _names(folder: ModuleType) -> list[str]:
    return [module.name for module in pkgutil.iter_modules(folder.__path__)]


def read_spec(spec: str) -> tuple[str, str, int | None]:
    """Take a sink's spec apart, without loading the sink.

    Args:
        spec: as `open_sink` has it.

    Returns:
        Its kind, its target (may be empty), and the N of ``tensors=N`` (None where not given).

    Raises:
        UsageError: no such kind, or an option that cannot be read.

    Example:
        >>> read_spec("csv:steps.csv,tensors=5")
        ('csv', 'steps.csv', 5)
    """
    address, tensors = _split(spec)
    kind, _, target = address.partition(":")
    if kind not in kinds():
        raise UsageError(
            f"no sink {kind!r}: choose one of {', '.join(kinds())}, as in 'tensorboard:logs'"
        )
    return kind, target, tensors


def open_sink(spec: str | Sink) -> Sink:
    """Make a sink from a spec; nothing is created before the first step.

    Args:
        spec: ``kind:target``, e.g. ``tensorboard:logs`` or ``mlflow:sqlite:///ml.db``, with
            ``,tensors=N`` behind it for per-tensor figures at every N-th step (0 for never).

    Returns:
        The sink, for `RunWriter.add_sink` or `replay`.

    Raises:
        UsageError: no such kind, or an option that cannot be read.

    Example:
        >>> sink = open_sink("csv:steps.csv,tensors=5")
        >>> sink.kind, sink.target, sink.tensors
        ('csv', 'steps.csv', 5)
    """
    if not isinstance(spec, str):
        return spec
    kind, target, tensors = read_spec(spec)
    home = "loggers" if kind in formats() else "listeners"
    module = importlib.import_module(f"steadygrad.sinks.{home}.{kind}")
    made: Sink = module.SINK(target, tensors=tensors)
    return made


def _split(spec: str) -> tuple[str, int | None]:
    parts = re.fullmatch(r"(.*?),tensors=(.*)", spec, re.DOTALL)
    if not parts:
        return spec, None
    if not parts[2].isdigit():
        raise UsageError(
            f"tensors= takes a number of steps, as in 'csv:a.csv,tensors=10'; got {parts[2]!r}"
        )
    return parts[1], int(parts[2])


def record(
    path: str | os.PathLike[str],
    *specs: str | Sink,
    info: Mapping[str, object] | None = None,
    force: bool = False,
) -> RunWriter:
    """Open a run file whose steps go to loggers too, for ``attach(run=...)``.

    Args:
        path: the run file, as for `RunWriter`.
        specs: sinks or their specs.
        info: facts about the run.
        force: replace an earlier run file.

    Returns:
        The writer.

    Raises:
        UsageError: a spec cannot be read.
        RunFileError: a file stands at ``path``.

    Example:
        >>> import tempfile, os
        >>> folder = tempfile.mkdtemp()
        >>> writer = record(folder + "/run.db", f"csv:{folder}/steps.csv")
        >>> writer.close()
        >>> sorted(os.listdir(folder))
        ['run.db', 'steps.csv']
    """
    from steadygrad.live.session import open_writer

    opened = [open_sink(spec) for spec in specs]  # a typo is told before a file is made
    writer = open_writer(path, info, force)
    for sink in opened:
        writer.add_sink(sink)
    return writer
