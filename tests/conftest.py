"""The order of the tests: what may take longest begins first."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A worker that ends the run with a test of minutes leaves the other cores idle.

    Neighbours stay neighbours: what they share is made once a worker.
    """
    usual = float(config.getini("timeout"))
    items.sort(key=lambda item: _seconds_allowed(item) <= usual)


def _seconds_allowed(item: pytest.Item) -> float:
    marker = item.get_closest_marker("timeout")
    return float(marker.args[0]) if marker and marker.args else 0.0
