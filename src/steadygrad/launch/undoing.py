"""What observing changed in libraries, so that a notebook's next cell finds them as they were.

A script that is observed ends with its process, and nothing has to be put back.
"""

from __future__ import annotations

from collections.abc import Callable

_MISSING = object()
_undo: list[Callable[[], None]] = []


def replace(owner: object, name: str, value: object) -> None:
    """Set an attribute of a class or module, which `undo_all` takes back.

    Args:
        owner: the class or module.
        name: of the attribute.
        value: what stands there from now on.

    Example:
        >>> import types
        >>> library = types.SimpleNamespace(name="theirs")
        >>> replace(library, "name", "ours")
        >>> undo_all()
        >>> library.name
        'theirs'
    """
    before = vars(owner).get(name, _MISSING)
    setattr(owner, name, value)

    def put_back() -> None:
        if vars(owner).get(name) is not value:
            return  # somebody has replaced ours since: taking it out would take theirs out
        if before is _MISSING:
            delattr(owner, name)
        else:
            setattr(owner, name, before)

    note(put_back)


def note(undo: Callable[[], None]) -> None:
    """Have `undo_all` call a function.

    Args:
        undo: takes a change back.
    """
    _undo.append(undo)


def undo_all() -> None:
    """Take back what was changed, the last change first.

    Raises:
        Exception: a change could not be taken back; all others were.
    """
    try:
        while _undo:
            _undo.pop()()
    finally:
        if _undo:
            undo_all()
