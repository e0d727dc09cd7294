"""Record: one SQLite file a run, its writer and its reader."""

from steadygrad.runlog.reader import as_run, open_run
from steadygrad.runlog.records import STEP_DTYPE, StepRecord, TensorInfo
from steadygrad.runlog.run import Event, Run
from steadygrad.runlog.stopping import TrainingStopped
from steadygrad.runlog.writer import RunWriter
from steadygrad.vocabulary import ACTIONS

__all__ = [
    "ACTIONS",
    "STEP_DTYPE",
    "Event",
    "Run",
    "RunWriter",
    "StepRecord",
    "TensorInfo",
    "TrainingStopped",
    "as_run",
    "open_run",
]
