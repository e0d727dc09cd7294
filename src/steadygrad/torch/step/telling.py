"""What becomes of our own faults, and of what the user should know of an optimizer's steps."""

from __future__ import annotations

from collections.abc import Callable

from steadygrad.errors import NoGradientsWarning
from steadygrad.torch.internals.warn import warn_user


class Telling:
    """Raises faults and warns; or tells somebody, so that the training goes on as it is.

    Attributes:
        silent: the user is warned no more; one warning is enough.
    """

    def __init__(self) -> None:
        self.silent = False
        self._tell_fault: Callable[[Exception], None] | None = None
        self._tell_user: Callable[[str], None] = _warn_of_gradients

    def survive(self, tell: Callable[[Exception], None], tell_user: Callable[[str], None]) -> None:
        """From now on, raise and warn no more.

        Args:
            tell: given each fault.
            tell_user: given a sentence on what the script does.
        """
        self._tell_fault, self._tell_user = tell, tell_user

    def fault(self, error: Exception) -> None:
        """Something of ours went wrong."""
        if self._tell_fault is None:
            raise error
        self._tell_fault(error)

    def warn(self, sentence: str) -> None:
        """Say something of the script's steps that makes clipping idle, once."""
        if not self.silent:
            self.silent = True
            self._tell_user(sentence)


def _warn_of_gradients(sentence: str) -> None:
    warn_user(sentence, NoGradientsWarning)
