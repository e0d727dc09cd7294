"""The one place the version stands; the CHANGELOG's top entry equals it (a test checks)."""

__version__ = "0.1.0"
