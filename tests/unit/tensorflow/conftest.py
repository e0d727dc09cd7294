"""Silence TensorFlow's own start-up words; skip nothing."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
