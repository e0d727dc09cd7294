"""When samples are due, and the figures of a matrix."""

from __future__ import annotations

import math

import numpy as np
import pytest

from steadygrad.runlog.sampled import (
    LARGEST_EXACT,
    TAKEN,
    WeightFigures,
    due,
    side_by_side,
    spectral_radius,
    stride,
)


def test_the_first_steps_are_close_together_and_later_ones_are_far_apart():
    assert [n for n in range(70) if due(n, every=32)] == [0, 1, 2, 4, 8, 16, 32, 64]


def test_no_tensor_stands_with_more_elements_than_it_may():
    for elements in (1, TAKEN, TAKEN + 1, 10 * TAKEN + 3):
        assert 1 <= len(range(0, elements, stride(elements))) <= TAKEN


def test_the_radius_is_exact_for_small_matrices():
    angle = 0.3  # a rotation: a complex pair of modulus 1.2
    turn = 1.2 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    assert spectral_radius(turn) == pytest.approx(1.2, rel=1e-12)


def test_the_radius_of_large_matrices_is_close():
    rng = np.random.default_rng(0)
    size = LARGEST_EXACT + 72
    matrix = rng.normal(size=(size, size)) / np.sqrt(size) * 1.4
    exact = np.abs(np.linalg.eigvals(matrix)).max()
    # the mean growth over 64 products reaches the top pair to a few per cent
    assert spectral_radius(matrix) == pytest.approx(exact, rel=0.05)


def test_what_has_no_radius_has_nan():
    assert math.isnan(spectral_radius(np.zeros((2, 3))))
    assert math.isnan(spectral_radius(np.full((2, 2), np.inf)))
    assert spectral_radius(np.zeros((200, 200))) == 0


class Written(list):
    """What a writer was given."""

    def write_sample(self, name, step, ids, values):
        self.append((name, step, ids.tolist(), values))


def test_figures_of_weights_are_those_of_numpy():
    rng = np.random.default_rng(0)
    given = [np.full(1000, 0.1), rng.standard_normal(77), np.zeros(0), rng.standard_normal(1)]
    given += [np.full(9, 0.1 - 0.7j), rng.standard_normal(5) + 1j]
    parts, starts = side_by_side(given)
    written = Written()
    figures = WeightFigures(written)
    figures.write(4, np.arange(6), np.full(6, np.nan), parts, starts)
    assert figures.after(5)
    figures.finish(side_by_side([p * 1.5 for p in given])[0])
    (_, _, _, norms), (_, _, ids, deviations), (name, step, _, ratios) = written
    assert ids == list(range(6))
    assert (name, step) == ("update_ratio", 4)
    assert (norms == np.inf).all()
    assert deviations[0] == deviations[3] == deviations[4] == 0  # exactly: a rule asks for it
    np.testing.assert_allclose(deviations[[1, 5]], [given[1].std(), given[5].std()], rtol=1e-13)
    np.testing.assert_allclose(ratios[[0, 1, 3, 4, 5]], 0.5, rtol=1e-13)
    assert np.isnan(deviations[2])
    assert np.isnan(ratios[2])


def test_a_skipped_step_and_several_at_once_tell_nothing_of_an_update():
    parts, starts = side_by_side([np.ones(3)])
    written = Written()
    figures = WeightFigures(written)
    figures.write(0, np.arange(1), np.ones(1), parts, starts)
    assert not figures.after(0)
    assert not figures.after(2)
    assert not figures.waits
    figures.write(4, np.arange(1), np.ones(1), parts, starts)
    figures.finish(parts)
    assert [row[0] for row in written] == ["weight_norm", "weight_std"] * 2


def test_no_weights_are_no_error():
    figures = WeightFigures(Written())
    parts, starts = side_by_side([])
    figures.write(0, np.arange(0), np.zeros(0), parts, starts)
    figures.finish(parts)
