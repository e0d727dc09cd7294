"""Figures and shares as findings print them."""

from __future__ import annotations


def number(value: float) -> str:
    """A figure as findings print it: three digits, no noise.

    Example:
        >>> number(0.0001234), number(1234567.0), number(3.0), number(float("inf"))
        ('0.000123', '1.23e+06', '3', 'inf')
    """
    return f"{value:.3g}"


def percent(share: float) -> str:
    """A share as findings print it.

    Example:
        >>> percent(0.0812), percent(1.0)
        ('8.1 %', '100 %')
    """
    value = 100 * share
    return f"{value:.0f} %" if value >= 10 or value == 0 else f"{value:.1f} %"
