"""Figures, factors and shares as findings print them."""

from __future__ import annotations

from steadygrad.text import factor, percent, times

__all__ = ["factor", "number", "percent", "times"]


def number(value: float) -> str:
    """A figure as findings print it: three digits, no noise.

    Example:
        >>> number(0.0001234), number(1234567.0), number(3.0), number(float("inf"))
        ('0.000123', '1.23e+06', '3', 'inf')
    """
    return f"{value:.3g}"
