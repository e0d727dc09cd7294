"""Observing a TensorFlow script."""
