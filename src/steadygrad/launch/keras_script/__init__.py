"""Observing a Keras script."""
