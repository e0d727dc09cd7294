"""Settings every test runs under: one thread a process, offline, no leaked environment."""

from __future__ import annotations

import contextlib
import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed prints its guess otherwise

# A background job begins with Ctrl-C ignored, and hands that on to whatever a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# TensorFlow and triton each carry an LLVM that registers the same options: a process that holds
# both survives only where triton comes first, and torch imports it late.
with contextlib.suppress(ImportError):
    import triton  # noqa: F401
