"""SG3: what is too small, and what only looks so."""

from __future__ import annotations

import numpy as np
import pytest


def vanish(m, ratio=1e6):
    m.norms *= np.repeat(np.geomspace(1 / ratio, 1, m.layers), 2)[None]


def test_vanishing_with_a_stalled_loss(make):
    m = make()
    vanish(m)
    m.loss[:] = 2.3
    assert m.ids == ["SG301"]
    assert m.findings[0].severity == "error"


def test_the_same_norms_in_a_run_that_learns(make):
    m = make()
    vanish(m)
    assert m.ids == []


def test_small_everywhere_is_converged_not_vanishing(make):
    m = make()
    m.norms *= 1e-7
    m.loss[:] = 0.001
    assert m.ids == []


def test_without_a_loss_the_ratio_must_be_larger(make):
    m = make()
    vanish(m, 1e3)
    m.loss[:] = np.nan
    assert m.ids == []
    vanish(m, 1e3)
    assert m.ids == ["SG301"]


def test_dead_is_told_from_vanishing(make):
    m = make()
    m.norms[:, :10] = 0.0
    m.zeros[:, :10] = 1.0
    m.loss[:] = 2.3
    assert m.ids == ["SG302"]


@pytest.mark.parametrize("stalls", [True, False])
def test_dead_units_need_a_loss_that_stalls(make, stalls):
    m = make()
    m.zeros[:, m.column("2.bias")] = 0.9
    if stalls:
        m.loss[:] = 2.3
    assert m.ids == (["SG302"] if stalls else [])


def test_a_solved_loss_explains_zeros(make):
    m = make()
    m.norms[60:] = 0.0
    m.zeros[60:] = 1.0
    m.loss[60:] = 0.0
    assert m.ids == []


def test_untouched_embedding_rows_are_not_dead(make):
    m = make()
    m.tensors[0] = type(m.tensors[0])("embed.weight", (16, 16), "float32", "Embedding", 0)
    m.zeros[:, 0] = 1.0
    m.loss[:] = 2.3
    assert m.ids == []


def test_never_a_gradient(make):
    m = make()
    m.norms[:, 2:4] = np.nan
    m.columns["norm"] = np.sqrt(np.nansum(m.norms**2, axis=1))
    assert m.ids == ["SG303"]
    assert m.findings[0].tensors == ("1.weight", "1.bias")


def test_frozen_on_purpose(make):
    m = make()
    m.norms[:, 2:4] = np.nan
    m.columns["norm"] = np.sqrt(np.nansum(m.norms**2, axis=1))
    m.info["frozen"] = [2, 3]
    assert m.ids == []


def test_saturated_activations(make):
    m = make()
    m.loss[:] = 2.3
    m.sample("activation_saturated", dict.fromkeys(("0.weight", "1.weight", "2.weight"), 0.9))
    assert m.ids == ["SG304"]
    m.sample("activation_saturated", dict.fromkeys(("0.weight", "1.weight", "2.weight"), 0.2))
    assert m.ids == []
