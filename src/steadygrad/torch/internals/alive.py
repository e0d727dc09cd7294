"""The objects of some classes that live in this process, asked of the garbage collector."""

from __future__ import annotations

import gc
import itertools
from typing import Any


def alive(*classes: type) -> list[Any]:
    """The objects of these classes, and of those derived from them, that the collector knows.

    Half a million objects are looked at without a line of Python for each. Classes go by their ids
    (a metaclass may forbid hashing) and by their bases, never by isinstance, which asks lazy
    proxies for their class, or issubclass, which an abstract class answers from a table.

    Args:
        classes: one or more.

    Returns:
        The objects, in an order that may differ from process to process.

    Example:
        >>> class Lamp:
        ...     pass
        >>> lamp = Lamp()
        >>> alive(Lamp) == [lamp]
        True
    """
    things = gc.get_objects()
    kinds = dict(zip(map(id, map(type, things)), map(type, things), strict=True))
    bases = set(map(id, classes))
    wanted = {key for key, kind in kinds.items() if not bases.isdisjoint(map(id, kind.__mro__))}
    chosen = map(wanted.__contains__, map(id, map(type, things)))
    return list(itertools.compress(things, chosen))
