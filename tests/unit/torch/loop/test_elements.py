"""Which elements stand for a tensor."""

from __future__ import annotations

import pytest
import torch

from steadygrad.torch.loop.elements import MOST, elements_of


@pytest.mark.parametrize(
    "shape", [(256, 64), (300, 784), (16, 784), (10, 3), (64, 16, 3, 3), (4, 1), (7, 2), (1000,)]
)
def test_elements_are_of_many_rows_and_columns(shape: tuple[int, ...]) -> None:
    """Of images the pixels at the edge are often always 0, and so are the gradients there."""
    rows, columns = shape[0], torch.Size(shape[1:]).numel()
    places = elements_of(torch.arange(float(rows * columns)).reshape(shape))
    assert places is not None
    assert len(places) == min(MOST, rows * columns)
    assert len(set((places % columns).tolist())) >= min(columns, 20)
    assert len(set((places // columns).tolist())) >= min(rows, 10)
    if columns in (64, 784):  # of square images
        width = round(columns**0.5)
        y, x = places % columns // width, places % columns % width
        inside = (x > 0) & (x < width - 1) & (y > 0) & (y < width - 1)
        assert int(inside.sum()) >= 8
