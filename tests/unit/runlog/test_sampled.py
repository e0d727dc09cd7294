"""When samples are due, and the figures of a matrix."""

from __future__ import annotations

import math

import numpy as np
import pytest

from steadygrad.runlog.sampled import LARGEST_EXACT, TAKEN, due, spectral_radius, stride


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
