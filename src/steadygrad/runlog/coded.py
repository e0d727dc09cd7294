"""Steps as a chunk of the file holds them, coded once, whatever chunk they end in.

Fresh steps stand in small chunks of their own first and in a large one later: what is coded can be
joined and cut, so that neither needs the figures again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from steadygrad.runlog.encode import (
    CODE_EXACT,
    Codes,
    Floats,
    Rows,
    encode_magnitudes,
    encode_shares,
    pack,
    pack_sparse,
)

Places = NDArray[np.uint32]


@dataclass(frozen=True)
class CodedFigures:
    """Figures of steps over one set of tensors, ``[rows, tensors]`` but for the places.

    Attributes:
        places: which rows of their table these are, ascending.
        norms: 16-bit logarithms.
        max_abs: 16-bit logarithms.
        zeros: 16-bit shares.
        exact_norms: as they were; None where 16 bits hold them all.
        exact_max_abs: likewise.
        nonfinite: counts; None where all are 0.
    """

    places: Places
    norms: Codes
    max_abs: Codes
    zeros: Codes
    exact_norms: Floats | None
    exact_max_abs: Floats | None
    nonfinite: Floats | None

    @classmethod
    def of(
        cls,
        places: Sequence[int] | Places,
        norms: Floats,
        max_abs: Floats,
        nonfinite: Floats | NDArray[np.int64],
        shares: Floats,
    ) -> CodedFigures:
        """Code figures; zeros come as shares in 0..1."""
        norm_codes, max_codes = encode_magnitudes(norms), encode_magnitudes(max_abs)
        return cls(
            np.asarray(places, np.uint32),
            norm_codes,
            max_codes,
            encode_shares(shares),
            norms if (norm_codes == CODE_EXACT).any() else None,
            max_abs if (max_codes == CODE_EXACT).any() else None,
            nonfinite.astype(np.float64) if nonfinite.any() else None,
        )

    @classmethod
    def joined(cls, parts: Sequence[CodedFigures]) -> CodedFigures:
        """One of several, in their order."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            np.concatenate([part.places for part in parts]),
            np.concatenate([part.norms for part in parts]),
            np.concatenate([part.max_abs for part in parts]),
            np.concatenate([part.zeros for part in parts]),
            _joined_or_none([part.exact_norms for part in parts], parts),
            _joined_or_none([part.exact_max_abs for part in parts], parts),
            _joined_or_none([part.nonfinite for part in parts], parts),
        )

    def moved(self, rows: int) -> CodedFigures:
        """The same, so many rows further on in a table."""
        return replace(self, places=(self.places + rows).astype(np.uint32))

    def cut(self, first: int, last: int) -> CodedFigures:
        """Those of the rows from one to before another, which are numbered from 0."""
        a, b = np.searchsorted(self.places, (first, last))
        return CodedFigures(
            (self.places[a:b] - first).astype(np.uint32),
            self.norms[a:b],
            self.max_abs[a:b],
            self.zeros[a:b],
            None if self.exact_norms is None else self.exact_norms[a:b],
            None if self.exact_max_abs is None else self.exact_max_abs[a:b],
            None if self.nonfinite is None else self.nonfinite[a:b],
        )

    def packed(self, level: int) -> tuple[bytes | None, ...]:
        """Compress them as hard as ``level`` says.

        Returns:
            Columns of the table ``figures``: places, norms, maxima and zeros; exact norms, exact
            maxima and counts, with their places, each None where there are none.
        """
        counts = self.nonfinite
        return (
            pack(self.places, level),
            pack(self.norms, level),
            pack(self.max_abs, level),
            pack(self.zeros, level),
            _sparse(self.exact_norms, self.norms, level),
            _sparse(self.exact_max_abs, self.max_abs, level),
            None if counts is None else pack_sparse(counts, counts != 0, level),
        )


def _sparse(exact: Floats | None, codes: Codes, level: int) -> bytes | None:
    return None if exact is None else pack_sparse(exact, codes == CODE_EXACT, level)


def _joined_or_none(
    figures: Sequence[Floats | None], parts: Sequence[CodedFigures]
) -> Floats | None:
    if all(figure is None for figure in figures):
        return None
    filled = [
        np.zeros(part.norms.shape) if figure is None else figure
        for figure, part in zip(figures, parts, strict=True)
    ]
    return np.concatenate(filled)


@dataclass(frozen=True)
class CodedSteps:
    """Rows of `STEP_DTYPE`, and the figures of their tensors.

    Attributes:
        table: the rows.
        figures: by the bytes of the numbers of the tensors.
    """

    table: Rows
    figures: dict[bytes, CodedFigures]

    def __len__(self) -> int:
        return len(self.table)

    @classmethod
    def joined(cls, parts: Sequence[CodedSteps]) -> CodedSteps:
        """One of several, in their order."""
        if len(parts) == 1:
            return parts[0]
        figures: dict[bytes, list[CodedFigures]] = {}
        rows = 0
        for part in parts:
            for ids, each in part.figures.items():
                figures.setdefault(ids, []).append(each.moved(rows))
            rows += len(part)
        return cls(
            np.concatenate([part.table for part in parts]),
            {ids: CodedFigures.joined(each) for ids, each in figures.items()},
        )

    def cut(self, first: int, last: int) -> CodedSteps:
        """The rows from one to before another, which are numbered from 0."""
        cuts = {ids: each.cut(first, last) for ids, each in self.figures.items()}
        there = {ids: each for ids, each in cuts.items() if len(each.places)}
        return CodedSteps(self.table[first:last], there)
