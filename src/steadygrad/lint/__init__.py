"""Lint: the mistakes around gradient clipping, found in the source before the run.

One file a check, found by being in `checks/`. No framework is imported: sources are read, not run.
"""

from __future__ import annotations

import importlib
import importlib.resources
import os
import pkgutil
from collections.abc import Iterable

from steadygrad.errors import UsageError
from steadygrad.lint import checks
from steadygrad.lint.check import Check
from steadygrad.lint.diagnostic import Diagnostic, Edit, Fix, Severity
from steadygrad.lint.linting import Report, lint_paths, lint_text

__all__ = [
    "CHECKS",
    "Check",
    "Diagnostic",
    "Edit",
    "Fix",
    "Report",
    "Severity",
    "lint",
    "lint_text",
    "page",
    "selected",
]


def _discover() -> dict[str, Check]:
    names = sorted(module.name for module in pkgutil.iter_modules(checks.__path__))
    loaded = [importlib.import_module(f"{checks.__name__}.{name}").CHECK for name in names]
    return {check.id: check for check in loaded}


CHECKS: dict[str, Check] = _discover()
"""Id -> check, ascending."""


def lint(
    *paths: str | os.PathLike[str],
    select: Iterable[str] = (),
    ignore: Iterable[str] = (),
    exclude: Iterable[str] = (),
    fix: bool = False,
) -> Report:
    """Look for mistakes around gradient clipping in Python files and notebooks.

    Args:
        paths: files, and folders that are searched.
        select: ids, or beginnings of ids such as ``SG4``; all where empty.
        ignore: ids, or beginnings of ids, that are left out.
        exclude: patterns of paths that are left out.
        fix: mend what can be mended, in place.

    Returns:
        The report: diagnostics, files read, files that could not be read.

    Raises:
        UsageError: a path does not exist, or no check has such an id.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp(), "train.py")
        >>> _ = path.write_text("clip_grad_norm_([p.grad for p in net.parameters()], 1.0)")
        >>> [d.id for d in lint(path).diagnostics]
        ['SG410']
    """
    return lint_paths(paths, selected(select, ignore), exclude=exclude, fix=fix)


def selected(select: Iterable[str] = (), ignore: Iterable[str] = ()) -> list[Check]:
    """The checks that some ids, or beginnings of ids, choose.

    Args:
        select: what is taken; all where empty.
        ignore: what is left out of that.

    Returns:
        The checks, by id.

    Raises:
        UsageError: no check has such an id.

    Example:
        >>> [check.id for check in selected(["SG40"], ["SG404", "SG405"])]
        ['SG406', 'SG407', 'SG408', 'SG409']
    """
    wanted, unwanted = _prefixes(select), _prefixes(ignore)
    return [
        check
        for id, check in CHECKS.items()
        if (not wanted or id.startswith(wanted)) and not (unwanted and id.startswith(unwanted))
    ]


def _prefixes(words: Iterable[str]) -> tuple[str, ...]:
    prefixes = tuple(word.strip().upper() for word in words if word.strip())
    for prefix in prefixes:
        if not any(id.startswith(prefix) for id in CHECKS):
            raise UsageError(f"no check begins with {prefix!r}; there are: {', '.join(CHECKS)}")
    return prefixes


def page(id: str) -> str:
    """The page of a check that has no run-time rule, in Markdown.

    Args:
        id: e.g. ``SG701``.

    Returns:
        The text; empty where the check shares a rule's page.
    """
    text = importlib.resources.files(__name__).joinpath("pages", f"{id}.md")
    return text.read_text(encoding="utf-8") if text.is_file() else ""
