"""Figures as people read them, and as JSON holds them: strict, short, without NaN."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
SIGNIFICANT = 5


def figure(value: float | None) -> str:
    """A figure with three significant digits, for reading.

    Args:
        value: any float; None or NaN where unknown.

    Returns:
        The text; powers of ten beyond a million and below a thousandth.

    Example:
        >>> [figure(v) for v in (0.84213, 13780.6, 1.54e8, 2e-5, 0.0, float("inf"), None)]
        ['0.842', '13,781', '1.54×10⁸', '2×10⁻⁵', '0', '∞', '–']
    """
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    size = abs(value)
    if size == 0 or 1e-3 <= size < 1e3:
        return f"{value:.3g}"
    if 1e3 <= size < 1e6:
        return f"{value:,.0f}"
    digits, exponent = f"{value:.2e}".split("e")
    return f"{digits.rstrip('0').rstrip('.')}×10{str(int(exponent)).translate(_SUPERSCRIPT)}"


def duration(seconds: float | None) -> str:
    """A length of time, for reading.

    Example:
        >>> [duration(s) for s in (0.00042, 0.42, 42.3, 372.0, 9000.0, None)]
        ['0.42 ms', '0.42 s', '42.3 s', '6 min 12 s', '2 h 30 min', '–']
    """
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if seconds < 0.1:
        return f"{1e3 * seconds:.2g} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def short(values: NDArray[Any]) -> list[float | None]:
    """Floats with five significant digits as JSON holds them; None where not finite.

    Example:
        >>> short(np.array([0.123456789, np.nan, 3.0]))
        [0.12346, None, 3.0]
    """
    return [
        float(f"{v:.{SIGNIFICANT}g}") if math.isfinite(v) else None
        for v in np.asarray(values).tolist()
    ]


def plain(value: object) -> Any:
    """Any nested value as strict JSON: arrays and tuples as lists, NaN and inf as words.

    Example:
        >>> plain({"a": (1, float("nan")), "b": np.float64(2.5), 3: float("inf")})
        {'a': [1, 'nan'], 'b': 2.5, '3': 'inf'}
    """
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Iterable):
        return [plain(item) for item in value]
    return str(value)
