"""Figures keep their promise over the whole range of floats: 0.2 %, and no value lost."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from steadygrad.runlog import encode

FLOAT64 = np.finfo(np.float64)
EXTREMES = [FLOAT64.smallest_subnormal, FLOAT64.tiny, FLOAT64.max, 1e-46, 1e154, 2.0**130.5]


def every_magnitude() -> np.ndarray:
    """Every exponent of float64 with several mantissas, subnormals included."""
    exponents = np.arange(-1074, 1024)
    return np.concatenate([np.ldexp(m, exponents) for m in (1.0, 1.2345, 1.5, 1.9999)])


def kept(values: np.ndarray) -> np.ndarray:
    codes = encode.encode_magnitudes(values)
    beside = encode.pack_sparse(values, codes == encode.CODE_EXACT)
    return encode.unpack_sparse(beside, encode.decode_magnitudes(codes))


def test_relative_error_over_all_exponents_of_float64() -> None:
    values = every_magnitude()
    error = np.abs(kept(values) / values - 1.0)
    assert error.max() <= encode.RELATIVE_ERROR < 0.002


def test_the_error_bound_is_not_loose() -> None:
    values = np.geomspace(1e-3, 1e3, 100_000)
    error = np.abs(kept(values) / values - 1.0)
    assert error.max() > 0.9 * encode.RELATIVE_ERROR


def test_float32_range_needs_no_exact_storage() -> None:
    info = np.finfo(np.float32)
    values = np.array([info.smallest_subnormal, info.tiny, 1.0, info.max], np.float64)
    assert not (encode.encode_magnitudes(values) == encode.CODE_EXACT).any()


@pytest.mark.parametrize("value", [0.0, np.inf, np.nan])
def test_special_values_keep_their_own_code(value: float) -> None:
    decoded = encode.decode_magnitudes(encode.encode_magnitudes(np.array([value, 1.0])))
    np.testing.assert_array_equal(decoded[0], value)


@pytest.mark.parametrize("value", EXTREMES)
def test_values_outside_the_range_are_kept_bit_for_bit(value: float) -> None:
    assert kept(np.array([1.0, value]))[1] == value


@settings(max_examples=200, deadline=None)
@given(hnp.arrays(np.float64, (3, 4), elements=st.floats(min_value=0.0, allow_subnormal=True)))
def test_any_matrix_comes_back(values: np.ndarray) -> None:
    np.testing.assert_allclose(kept(values), values, rtol=encode.RELATIVE_ERROR)


def test_shares_keep_zero_and_one_apart_from_almost() -> None:
    shares = np.array([0.0, 1e-9, 0.5, 1 - 1e-9, 1.0])
    decoded = encode.decode_shares(encode.encode_shares(shares))
    assert np.abs(decoded - shares).max() < 2e-5
    assert decoded[0] == 0.0 < decoded[1]
    assert decoded[3] < 1.0 == decoded[4]


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.int64])
@pytest.mark.parametrize("shape", [(0,), (5,), (3, 7), (1, 1)])
def test_pack_is_lossless(dtype: type, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(1).integers(0, np.iinfo(dtype).max, size=shape).astype(dtype)
    back = encode.unpack(encode.pack(array), dtype, shape)
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


def test_sparse_counts_are_exact() -> None:
    counts = np.zeros((4, 5))
    counts[0, 0], counts[2, 3], counts[3, 4] = 1, 2**40, 7
    blob = encode.pack_sparse(counts, counts != 0)
    np.testing.assert_array_equal(encode.unpack_sparse(blob, np.zeros((4, 5))), counts)


def test_nothing_sparse_costs_nothing() -> None:
    assert encode.pack_sparse(np.zeros(3), np.zeros(3, bool)) is None


def test_step_columns_are_exact() -> None:
    steps = encode.blank_steps(3)
    steps["norm"] = [1 / 3, np.inf, np.nan]
    steps["action"] = ["none", "clip", "skip"]
    steps["nonfinite"] = [0, 2**50, 1]
    back = encode.decode_steps(encode.encode_steps(steps), 3, steps.dtype.names)
    assert back.tobytes() == steps.tobytes()


def test_a_file_with_fewer_columns_reads_as_unknown() -> None:
    raw = np.stack([np.array([4, 5]), np.array([1.5, 2.5]).view(np.int64)], axis=1)
    steps = encode.decode_steps(encode.pack(raw), 2, ["step", "norm"])
    assert steps["norm"].tolist() == [1.5, 2.5]
    assert np.isnan(steps["loss"]).all()
