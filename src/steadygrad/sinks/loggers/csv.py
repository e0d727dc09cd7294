"""CSV: a row a step; NaN and inf as ``nan`` and ``inf``, which every reader knows."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING

from steadygrad.sinks.files import TableSink, create

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Csv(TableSink):
    """A ``.csv`` file; with tensors, four columns a tensor."""

    kind = "csv"
    suffix = ".csv"

    def begin_part(self, path: Path, names: list[str]) -> None:
        """Create the file and write its header."""
        self._file = create(path, text=True)
        self._rows = csv.writer(self._file)
        self._rows.writerow(names)

    def rows(self, columns: list[NDArray[np.generic]]) -> None:
        """Append rows; floats in the shortest form that reads back to the same number."""
        self._rows.writerows(zip(*(column.tolist() for column in columns), strict=True))
        self._file.flush()

    def end_part(self) -> None:
        """Close the file."""
        self._file.close()


SINK = Csv
