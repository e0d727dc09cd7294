"""What stands changed in torch, and how it is put back."""

from __future__ import annotations

import weakref
from collections.abc import Callable


class PatchSet:
    """Changes of foreign objects that are made and undone together.

    They stand for as long as somebody holds them, and are undone in reverse order.

    Args:
        make: makes the changes, by `add` and `replace`, when the first holder comes.
        undone: told when the last holder has gone and the changes are undone.

    Example:
        >>> import types
        >>> library, holder = types.SimpleNamespace(name="theirs"), set
        >>> patches = PatchSet(lambda patches: patches.replace(library, "name", "ours"))
        >>> patches.hold(holder)
        >>> library.name
        'ours'
        >>> patches.release(holder)
        >>> library.name
        'theirs'
    """

    def __init__(
        self,
        make: Callable[[PatchSet], None],
        undone: Callable[[], None] = lambda: None,
    ) -> None:
        self._make, self._undone = make, undone
        self._undo: list[Callable[[], bool]] = []
        self._holders: weakref.WeakSet[object] = weakref.WeakSet()

    @property
    def holders(self) -> list[object]:
        """Who holds the changes, those that are alive."""
        return list(self._holders)

    def hold(self, holder: object) -> None:
        """Keep the changes until `release`, or until the holder is gone; it is held weakly."""
        if holder not in self._holders:
            # in this order: the last callback made is called first, and takes the holder out
            weakref.finalize(holder, self._release_unheld).atexit = False
            self._holders.add(holder)
        if not self._undo:  # held already: an earlier holder may be collected at any line of this
            self._make(self)

    def release(self, holder: object) -> None:
        """End a hold; after the last one the changes are undone."""
        self._holders.discard(holder)
        self._release_unheld()

    def add(self, undo: Callable[[], bool]) -> None:
        """Note a change that was made.

        Args:
            undo: takes it back; False where that cannot be done now.
        """
        self._undo.append(undo)

    def replace(self, owner: object, name: str, value: object) -> None:
        """Set an attribute of an object, class or module.

        Where somebody has replaced ours since, it is left: taking it out would take theirs out.
        """
        original = vars(owner)[name]
        setattr(owner, name, value)

        def undo() -> bool:
            if vars(owner)[name] is not value:
                return False
            setattr(owner, name, original)
            return True

        self.add(undo)

    def _release_unheld(self) -> None:
        if self._undo and not self._holders:
            self._undo[:] = [undo for undo in reversed(self._undo) if not undo()][::-1]
            self._undone()
