"""Gradients as data: measured, changed element by element, compared before and after."""
