"""Sinks that act on a run while it goes on; there is nothing to export to them."""
