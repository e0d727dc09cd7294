"""A live view of a run in a terminal, read from its file."""

from steadygrad.watch.loop import watch

__all__ = ["watch"]
