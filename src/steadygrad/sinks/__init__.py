"""Loggers: TensorBoard, Weights & Biases, MLflow and others, live or from a run file."""

from steadygrad.sinks.base import Batch, Sample, Sink
from steadygrad.sinks.opening import kinds, open_sink, record
from steadygrad.sinks.replay import export, replay

__all__ = ["Batch", "Sample", "Sink", "export", "kinds", "open_sink", "record", "replay"]
