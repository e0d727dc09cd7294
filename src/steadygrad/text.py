"""Numbers and names as text for people.

Names, arguments, paths and messages of exceptions come from elsewhere: what is shown in a
terminal passes `printable`, so that none of them moves its cursor or turns its letters.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeVar, cast

Shown = TypeVar("Shown")

_UNPRINTABLE = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f"  # what commands a terminal; lines stay
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # what turns the direction of reading
    "\u2028\u2029\ud800-\udfff]"  # line ends that few know; halves of characters
)


def printable(value: Shown) -> Shown:
    """The same text, with a mark for each character that does something instead of being seen.

    Args:
        value: text, or lists and dicts of it, to any depth; other values pass.

    Example:
        >>> printable({"name": ["\\x1b[2J"]})
        {'name': ['\ufffd[2J']}
    """
    if isinstance(value, str):
        return cast("Shown", _UNPRINTABLE.sub("\ufffd", value))
    if isinstance(value, dict):
        return cast("Shown", {printable(key): printable(item) for key, item in value.items()})
    if isinstance(value, tuple):
        return cast("Shown", tuple(printable(item) for item in value))
    return cast("Shown", [printable(item) for item in value]) if isinstance(value, list) else value


def place(file: str, line: object) -> str:
    """A line of a program, as editors read it, or as a notebook counts it.

    Example:
        >>> place("train.py", 3), place("Cell In[2]", 3)
        ('train.py:3', 'Cell In[2], line 3')
    """
    return f"{file}, line {line}" if file.startswith("Cell In[") else f"{file}:{line}"


def listed(names: Sequence[str]) -> str:
    """Names in one phrase; one at least.

    Example:
        >>> listed(["a", "b", "c"])
        'a, b and c'
    """
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def percent(share: float) -> str:
    """A share as text, with as many digits as help.

    Example:
        >>> percent(0.0), percent(0.0034), percent(0.25), percent(0.998)
        ('0 %', '0.3 %', '25 %', '99.8 %')
    """
    value = 100 * share
    if 0 < value < 0.05:
        return "under 0.1 %"
    digits = 1 if 0 < value < 10 or 99 < value < 100 else 0
    return f"{value:.{digits}f} %"
