"""Names of files that stand beside one another."""

from __future__ import annotations

import os
import shlex


def with_suffix(path: str, suffix: str) -> str:
    """The path with ``-suffix`` before its extension.

    Example:
        >>> with_suffix("/tmp/run.db", "rank1")
        '/tmp/run-rank1.db'
    """
    stem, extension = os.path.splitext(path)
    return f"{stem}-{suffix}{extension}"


def next_free(path: str) -> str:
    """The path, or the first of ``-2``, ``-3``... of it that does not exist.

    Args:
        path: what was asked for.

    Example:
        >>> import tempfile
        >>> asked = os.path.join(tempfile.mkdtemp(), "run.db")
        >>> open(asked, "w").close()
        >>> os.path.basename(next_free(asked))
        'run-2.db'
    """
    number, free = 1, path
    while os.path.exists(free):
        number += 1
        free = with_suffix(path, str(number))
    return free


def as_typed(path: str | os.PathLike[str] | None) -> str:
    """A path as it is typed after a command: from the folder at hand, where it lies below that.

    Args:
        path: of a run file; None for a run that is in none.

    Example:
        >>> as_typed(os.path.abspath("my run.db")), as_typed(None)
        ("'my run.db'", 'RUN.db')
        >>> print(as_typed("it's \\udcff.db"))
        $'it\\'s \\xff.db'
    """
    if path is None:
        return "RUN.db"
    relative = os.path.relpath(path)
    shown = os.fspath(path) if relative.startswith("..") else relative
    try:
        shown.encode()
    except UnicodeEncodeError:  # bytes that are no text, as shells are told of them
        spelled = os.fsencode(shown.replace("\\", "\\\\").replace("'", "\\'"))
        return f"$'{spelled.decode('utf-8', 'backslashreplace')}'"
    return shlex.quote(shown)
