"""The cases of `backend_cases.py`, one process a backend."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(600)  # all the cases of a backend

HERE = Path(__file__).parent
BACKENDS = ("jax", "tensorflow", "torch")
COMMON = [
    "clip_groups_for_nothing_are_told",
    "an_alert_ends_a_training",
    "an_observed_cell_leaves_keras_as_it_was",
    "a_bad_batch_is_skipped_whole",
    "a_scaler_that_compiling_adds_is_found",
    "a_window_is_skipped_whole",
    "accumulation_in_fit_equals_plain_clipping_of_the_average",
    "accumulation_clips_the_average_once",
    "attach_after_fit_works_or_raises",
    "fit_equals_global_clipnorm",
    "huge_and_half_gradients_are_exact",
    "loss_scales_are_taken_out",
    "missing_gradients_are_left_out",
    "multi_optimizer_is_clipped_as_one",
    "observing_is_bit_identical",
    "other_policies",
    "recovery_heals_and_changes_nothing_else",
    "recovery_of_what_cannot_be_is_refused",
    "raising_names_the_tensors_and_leaves_the_weights",
    "run_clips_many_optimizers_and_windows",
    "run_tells_what_a_scaler_drops",
    "run_counts_real_steps_and_changes_nothing",
    "run_records_broken_steps",
    "run_records_what_a_script_attaches_before_it_clips",
    "run_records_what_keras_clips_by_itself",
    "saving_brings_everything_back",
    "the_monitor_fills_logs_and_run_file",
    "the_monitor_samples_weights_and_tells_batch_losses",
    "weights_files_hold_the_policy_too",
    "what_nothing_is_done_with_is_told",
    "wrong_use_says_what_to_type",
]
ALONE = {
    "jax": ["jit_and_no_jit_agree", "run_hears_losses_of_its_own_trace"],
    # what is decided on the host, the same on all: where it compiles fastest
    "torch": [
        "loss_scale_optimizer_in_a_loop",
        "recovery_leaves_overflows_to_a_scaler_alone",
        "recovery_lowers_the_rate_and_gives_it_back",
        "rules_on_weights_speak_of_an_observed_run",
    ],
    "tensorflow": [
        "a_single_replica_steps_outside_of_a_branch",
        "a_train_step_of_ones_own",
        "drop_ins_inside_a_scaled_tape",
        "gradient_tape_loops_and_sparse_gradients",
        "jit_and_no_jit_agree",
        "loss_scale_optimizer_in_a_loop",
        "mirrored_replicas_reduce_first",
        "observing_leaves_scaled_gradients_alone",
        "rules_calibration_and_report_read_a_run",
        "run_hears_the_loss_of_each_optimizer",
        "run_reduces_over_replicas",
        "run_tells_what_a_scaler_drops_on_replicas",
        "run_sees_clips_by_hand_and_changes_nothing",
        "run_sees_updates_by_hand_and_changes_nothing",
        "run_takes_moves_to_another_point_for_no_steps",
    ],
}


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_case_holds(backend: str) -> None:
    """One test a backend, since its cases share a process: two workers never run them twice."""
    done = subprocess.run(
        [sys.executable, str(HERE / "backend_cases.py")],
        env={
            **os.environ,
            "KERAS_BACKEND": backend,
            "JAX_PLATFORMS": "cpu",
            "TF_CPP_MIN_LOG_LEVEL": "3",
        },
        capture_output=True,
        text=True,
        timeout=580,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert not outcome["failed"], "\n".join(
        f"{name}\n{trouble}" for name, trouble in outcome["failed"].items()
    )
    assert sorted(outcome["ran"]) == sorted(COMMON + ALONE[backend])


def test_a_saved_model_says_what_to_import(tmp_path: Path) -> None:
    code = (
        "import keras, os, sys\n"
        "if os.fork():\n"  # Keras is loaded once for both
        "    assert os.wait()[1] == 0\n"
        "    keras.models.load_model(sys.argv[1])\n"
        "else:\n"
        "    import steadygrad.keras as sg\n"
        "    m = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])\n"
        "    o = keras.optimizers.SGD(0.1); sg.attach(o); m.compile(optimizer=o, loss='mse')\n"
        "    m.save(sys.argv[1])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "m.keras")],
        env={
            **os.environ,
            "KERAS_BACKEND": next(filter(find_spec, ("torch", "jax", "tensorflow"))),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "import steadygrad.keras first" in done.stderr, done.stderr
