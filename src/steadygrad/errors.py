"""Every error and warning of steadygrad.

::

    SteadyGradError
    ├── UsageError (ValueError)         an argument is wrong; the message says what to type
    │   └── SpecError                   a clip spec that cannot be read
    ├── AttachError (RuntimeError)      an optimizer that cannot be attached to, or is already
    ├── NonFiniteError (RuntimeError)   `raise` was asked for and gradients are not finite
    ├── RecoveryError (RuntimeError)    recovery has done what it may; names the last good step
    ├── KernelError (RuntimeError)      a kernel form asked for by name cannot serve here
    ├── RunFileError (OSError)          a run file that cannot be opened or read
    ├── CalibrationError (ValueError)   a run that gives no threshold, and why
    └── MissingExtraError (ImportError) a library that is not installed, with the pip command
    SteadyGradWarning (UserWarning)
    ├── NoGradientsWarning              nothing was measured or clipped
    ├── ClippedTwiceWarning             the script clips what steadygrad clips too
    ├── NaNOriginWarning                where a NaN or inf came from, as asked for
    ├── ReplicasDifferWarning           ranks differ in what they should hold alike
    └── RecordingWarning                recording stopped; the training goes on
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "AttachError",
    "CalibrationError",
    "ClippedTwiceWarning",
    "KernelError",
    "MissingExtraError",
    "NaNOriginWarning",
    "NoGradientsWarning",
    "NonFiniteError",
    "RecordingWarning",
    "RecoveryError",
    "ReplicasDifferWarning",
    "RunFileError",
    "SpecError",
    "SteadyGradError",
    "SteadyGradWarning",
    "UsageError",
]


class SteadyGradError(Exception):
    """Base of every steadygrad error."""


class UsageError(SteadyGradError, ValueError):
    """An argument is wrong."""


class SpecError(UsageError):
    """A clip spec that cannot be read."""


class AttachError(SteadyGradError, RuntimeError):
    """An optimizer cannot be attached to."""


class NonFiniteError(SteadyGradError, RuntimeError):
    """Gradients are not finite and the caller asked for an error."""


class RecoveryError(SteadyGradError, RuntimeError):
    """Recovery has done what its ladder allows, and the training is still struck."""


class KernelError(SteadyGradError, RuntimeError):
    """A kernel form asked for by name cannot serve here."""


class RunFileError(SteadyGradError, OSError):
    """A run file cannot be opened or read."""


class CalibrationError(SteadyGradError, ValueError):
    """A run that gives no threshold."""


class MissingExtraError(SteadyGradError, ImportError):
    """A library that an optional part needs is not installed.

    Args:
        library: the import name that failed, e.g. ``"torch"``.
        extra: the steadygrad extra that installs it.
        what: what needed it, as a noun phrase.
    """

    def __init__(self, library: str, extra: str, what: str) -> None:
        super().__init__(
            f"{what} needs {library}, which is not installed. "
            f'Install it with: pip install "steadygrad[{extra}]"'
        )


@contextmanager
def needed_for(what: str, extra: str, library: str = "") -> Iterator[None]:
    """Say what to install where the imports inside fail.

    Args:
        what: what needs them, as a noun phrase.
        extra: the steadygrad extra that installs them.
        library: what is missing; by default the module that was not found.

    Raises:
        MissingExtraError: an import failed.

    Example:
        >>> with needed_for("the example", "demo"):
        ...     import no_such_library
        Traceback (most recent call last):
        ...
        steadygrad.errors.MissingExtraError: the example needs no_such_library, which is not \
installed. Install it with: pip install "steadygrad[demo]"
    """
    try:
        yield
    except ImportError as error:
        raise MissingExtraError(library or str(error.name), extra, what) from error


class SteadyGradWarning(UserWarning):
    """Base of every steadygrad warning."""


class NoGradientsWarning(SteadyGradWarning):
    """Nothing was measured or clipped."""


class ClippedTwiceWarning(SteadyGradWarning):
    """The script clips what steadygrad clips too; says what is on record, and what to type."""


class ReplicasDifferWarning(SteadyGradWarning):
    """Ranks that should hold the same gradients do not; says which, and what to type."""


class NaNOriginWarning(SteadyGradWarning):
    """A gradient or a loss is not finite; says where that came from."""


class RecordingWarning(SteadyGradWarning):
    """Recording stopped; the training goes on."""
