"""Parquet: typed columns, small files; readable once the run has ended."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from steadygrad.errors import needed_for
from steadygrad.sinks.files import TableSink, create

if TYPE_CHECKING:
    from types import ModuleType

    import pyarrow
    from numpy.typing import NDArray
    from pyarrow.parquet import ParquetWriter

GROUP_ROWS = 4096
"""Rows in a row group: a few rows each would make a file of headers."""


class Parquet(TableSink):
    """A ``.parquet`` file; with tensors, four columns a tensor."""

    kind = "parquet"
    suffix = ".parquet"

    def begin_part(self, path: Path, names: list[str]) -> None:
        """Create the file; its schema is that of the first rows."""
        self._arrow = _pyarrow()
        self._names = names
        self._file = create(path, text=False)
        self._waiting: list[list[NDArray[np.generic]]] = []
        self._writer: ParquetWriter | None = None

    def rows(self, columns: list[NDArray[np.generic]]) -> None:
        """Collect rows into groups."""
        self._waiting.append(columns)
        if sum(len(part[0]) for part in self._waiting) >= GROUP_ROWS:
            self._write_group()

    def _write_group(self) -> None:
        parts, self._waiting = self._waiting, []
        arrays = [np.concatenate(column) for column in zip(*parts, strict=True)]
        self._write(self._arrow.table(arrays, names=self._names))

    def _write(self, table: pyarrow.Table) -> None:
        if self._writer is None:
            from pyarrow.parquet import ParquetWriter

            self._writer = ParquetWriter(self._file, table.schema, compression="zstd")
        self._writer.write_table(table)

    def end_part(self) -> None:
        """Write what is left and the file's footer."""
        if self._waiting:
            self._write_group()
        if self._writer is None:
            empty = [np.zeros(0)] * len(self._names)
            self._write(self._arrow.table(empty, names=self._names))
        assert self._writer is not None
        self._writer.close()
        self._file.close()


def _pyarrow() -> ModuleType:
    with needed_for("writing Parquet", "parquet", "pyarrow"):
        import pyarrow
        import pyarrow.parquet
    module: ModuleType = pyarrow
    return module


SINK = Parquet
