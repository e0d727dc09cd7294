"""From paths to diagnostics: find the files, parse each, ask every check."""

from __future__ import annotations

import ast
import functools
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from steadygrad.errors import UsageError
from steadygrad.lint.check import Check
from steadygrad.lint.diagnostic import Diagnostic, Fix
from steadygrad.lint.module import Module
from steadygrad.lint.rewriting import apply
from steadygrad.lint.source import SourceFile, read, rewritten, silenced

_LEFT_OUT = frozenset({"__pycache__", "node_modules", "build", "dist", "site-packages", "venv"})

_MOST_FIXES = 20
"""Fixes of one file are made one after another, each on the file as the last one left it."""


@dataclass(frozen=True)
class Report:
    """What linting gave.

    Attributes:
        diagnostics: by path, line and column.
        files: how many files were read.
        unread: one sentence for each file that could not be read or parsed.
        fixed: how many fixes were made.
    """

    diagnostics: tuple[Diagnostic, ...]
    files: int
    unread: tuple[str, ...] = ()
    fixed: int = 0


def lint_text(text: str, checks: Iterable[Check]) -> list[Diagnostic]:
    """Lint one Python text.

    Args:
        text: the source.
        checks: what to look for.

    Returns:
        The diagnostics, by line and column, without those that ``# noqa`` silences.

    Raises:
        SyntaxError: the text is no Python, and has words that a check looks for.
    """
    checks = list(checks)
    if not _any_of(frozenset(check.words for check in checks)).search(text):
        return []
    module = Module.parse(text)
    lines = text.split("\n")
    diagnostics = {d: None for check in checks for d in check.find(module)}
    spoken = [d for d in diagnostics if not silenced(lines, d)]
    return sorted(spoken, key=lambda d: (d.line, d.column, d.id))


@functools.cache
def _any_of(words: frozenset[str]) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{each})" for each in sorted(words)))


def lint_paths(
    paths: Iterable[str | os.PathLike[str]],
    checks: Iterable[Check],
    *,
    exclude: Iterable[str] = (),
    fix: bool = False,
) -> Report:
    """Lint files and folders.

    Args:
        paths: Python files, notebooks, and folders that are searched for both.
        checks: what to look for.
        exclude: patterns of paths that are left out, as in ``**/generated/*``.
        fix: mend what can be mended, in place, and report what is left.

    Returns:
        The report.

    Raises:
        UsageError: a path does not exist.
    """
    checks, patterns = tuple(checks), tuple(exclude)
    diagnostics: list[Diagnostic] = []
    unread: list[str] = []
    files = fixed = 0
    for path in _files(paths, patterns):
        files += 1
        try:
            source = read(path)
            if fix:
                source, made = _mended(path, source, checks)
                fixed += made
            diagnostics += [source.placed(d) for d in lint_text(source.text, checks)]
        except UsageError as error:
            unread.append(str(error))
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            # nested too deep, in the words of one Python or another
            unread.append(f"{path} is not read as Python: {str(error) or type(error).__name__}")
    return Report(tuple(diagnostics), files, tuple(unread), fixed)


def _mended(path: Path, source: SourceFile, checks: tuple[Check, ...]) -> tuple[SourceFile, int]:
    """Make fixes one by one; a fix after which the file no longer parses is not made."""
    made = 0
    refused: set[Fix] = set()
    while made < _MOST_FIXES:
        fixes = [d.fix for d in lint_text(source.text, checks) if d.fix and d.fix not in refused]
        if not fixes:
            break
        text, _ = apply(source.text, fixes[:1])
        try:
            ast.parse(text)
        except SyntaxError:
            refused.add(fixes[0])
            continue
        original = path.read_text(encoding="utf-8-sig")
        content = rewritten(source, text, original)
        if content == original:
            refused.add(fixes[0])
            continue
        path.write_text(content, encoding="utf-8")
        source = read(path)
        made += 1
    return source, made


def _files(paths: Iterable[str | os.PathLike[str]], exclude: tuple[str, ...]) -> Iterator[Path]:
    for name in paths:
        path = Path(name)
        if path.is_dir():
            yield from _inside(path, exclude)
        elif path.exists():
            yield path
        else:
            raise UsageError(f"there is no file or folder {str(path)!r}; type a path that exists")


def _inside(folder: Path, exclude: tuple[str, ...]) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(f for f in folders if f not in _LEFT_OUT and not f.startswith("."))
        for name in sorted(names):
            path = Path(root, name)
            wanted = name.endswith((".py", ".ipynb")) and path.is_file()  # a pipe is no file
            if wanted and not any(path.match(pattern) for pattern in exclude):
                yield path
