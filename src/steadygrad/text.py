"""Numbers and names as text for people.

Names, arguments, paths and messages of exceptions come from elsewhere: what is shown in a
terminal passes `printable`, so that none of them moves its cursor or turns its letters.
"""

from __future__ import annotations

import math
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


_THOUSANDS = ("", "", " million", " billion", " trillion")


def factor(ratio: float) -> str:
    """A factor as text: three digits up to a thousand, two beyond, and words for the large ones.

    Args:
        ratio: 0 or more.

    Example:
        >>> factor(1.0449), factor(460.0), factor(801_234.0), factor(9.82e6), factor(2.44e20)
        ('1.04', '460', '800,000', '9.8 million', '10^20')
        >>> factor(0.0156), factor(2e-5), factor(float("inf"))
        ('0.0156', '1/50,000', 'infinitely many')
    """
    if ratio == math.inf:
        return "infinitely many"
    if 0 < ratio < 1e-3:
        return f"1/{factor(1 / ratio)}"
    value = float(f"{ratio:.3g}")
    if not value >= 1000:
        return f"{value:g}"
    value = float(f"{ratio:.2g}")
    power = int(math.log10(value))
    if power >= 3 * len(_THOUSANDS):
        return f"10^{power}"
    if power < 6:
        return f"{value:,.0f}"
    return f"{value / 1000.0 ** (power // 3):g}{_THOUSANDS[power // 3]}"


def times(ratio: float) -> str:
    """The same as a multiple.

    Example:
        >>> times(3.14159), times(116_666.0)
        ('3.14 times', '120,000 times')
    """
    return f"{factor(ratio)} times"
