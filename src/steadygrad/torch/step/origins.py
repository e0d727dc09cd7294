"""Looking for the origin of the first NaN of one optimizer, at the figures of each step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from steadygrad.errors import NaNOriginWarning
from steadygrad.kernels.native import Stamped
from steadygrad.runlog.origin import Origin
from steadygrad.stats import GradientStats
from steadygrad.torch.internals.warn import warn_user
from steadygrad.torch.origin.finder import Finder
from steadygrad.torch.step.table import ParameterTable
from steadygrad.vocabulary import NAN_ORIGIN

WriteEvent = Callable[[str, dict[str, Any], int | None], None]


class OriginSearch(Stamped):
    """Does nothing until `find`.

    Args:
        index: number of the optimizer within the run.

    Attributes:
        wanted: whether an origin is looked for.
        last: the last origin found.
    """

    def __init__(self, index: int) -> None:
        self.wanted = False
        self.last: Origin | None = None
        self._index = index
        self._finder: Finder | None = None
        self._quiet = False

    def find(self, optimizer: torch.optim.Optimizer, quiet: bool) -> None:
        """From now on, look at each step of this optimizer.

        Args:
            optimizer: the one of this search.
            quiet: no warning.
        """
        self.end()
        self._finder = Finder(optimizer)
        self._finder.begin()
        self.wanted, self._quiet = True, quiet

    def begin(self) -> None:
        """From now on the training computes what the next step applies."""
        if self._finder is not None:
            self._finder.begin()

    def rest(self) -> None:
        """A step begins."""
        if self._finder is not None:
            self._finder.rest()

    def stepped(self) -> None:
        """That step is over."""
        if self._finder is not None:
            self._finder.stepped()

    def end(self) -> None:
        """Look no more."""
        if self._finder is not None:
            self._finder.end()

    def seek(
        self,
        step: int,
        stats: GradientStats,
        table: ParameterTable,
        loss_scale: torch.Tensor | None,
        write_event: WriteEvent,
        raises: bool,
    ) -> Origin | None:
        """Explain what is not finite in a step.

        Args:
            step: its number.
            stats: its figures.
            table: the optimizer's parameters.
            loss_scale: of a GradScaler, or None.
            write_event: takes the origin, for the run file.
            raises: an error tells of it, so that no warning has to.

        Returns:
            The origin; None where nothing is broken, or nothing more is looked for.
        """
        if self._finder is None:
            return None
        origin = self._finder.check(
            step,
            stats.nonfinite,
            stats.names,
            table.params,
            table.names,
            loss_scale,
            stats.total_norm,
        )
        if origin is not None:
            self.last = origin
            write_event(NAN_ORIGIN, {**origin.as_json(), "optimizer": self._index}, origin.step)
            if not self._quiet and not raises:
                warn_user(str(origin), NaNOriginWarning)
        return origin
