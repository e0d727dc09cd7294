"""``[tool.steadygrad.lint]`` of the nearest pyproject.toml."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from steadygrad.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:  # the same parser, before it came with Python
    import tomli as tomllib


@dataclass(frozen=True)
class Configuration:
    """What a project says about linting.

    Attributes:
        select: ids, or beginnings of ids, that are looked for; all where empty.
        ignore: those that are left out.
        exclude: patterns of paths that are left out.
        fail_on: the least severity that makes the command fail; empty for its default.
    """

    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    fail_on: str = ""


def read_configuration(start: Path) -> Configuration:
    """Read the table of the nearest pyproject.toml, in a folder or above it.

    Args:
        start: where to begin.

    Returns:
        The configuration; the default where there is no table.

    Raises:
        UsageError: the file is no TOML, or an entry has another type.
    """
    folder = start.resolve()
    for above in (folder, *folder.parents):
        path = above / "pyproject.toml"
        if path.is_file():
            return _parsed(path)
    return Configuration()


def _parsed(path: Path) -> Configuration:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    entries: dict[str, object] = table
    for name in ("tool", "steadygrad", "lint"):
        inside = entries.get(name, {})
        if not isinstance(inside, dict):
            raise UsageError(f"{path}: [tool.steadygrad.lint] must be a table; got {inside!r}")
        entries = inside
    unknown = set(entries) - {"select", "ignore", "exclude", "fail-on"}
    if unknown:
        raise UsageError(
            f"{path}: [tool.steadygrad.lint] has no entry {', '.join(sorted(unknown))!r}; there "
            "are select, ignore, exclude and fail-on"
        )
    return Configuration(
        select=_words(path, "select", entries.get("select", [])),
        ignore=_words(path, "ignore", entries.get("ignore", [])),
        exclude=_words(path, "exclude", entries.get("exclude", [])),
        fail_on=str(entries.get("fail-on", "")),
    )


def _words(path: Path, name: str, value: object) -> tuple[str, ...]:
    if isinstance(value, list) and all(isinstance(word, str) for word in value):
        return tuple(value)
    raise UsageError(f'{path}: {name} must be a list of strings, as in ["SG4"]; got {value!r}')
