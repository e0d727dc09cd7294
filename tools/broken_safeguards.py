"""Break each safeguard of docs/security.md on purpose, and see its test fail.

    python tools/broken_safeguards.py [WORD]...

Works on a copy of the package and its tests, one safeguard after the other; words choose those
whose point, file or test holds one of them. Exits with 1 where a test does not fail, where it fails
before anything is broken, or where what is to be broken is not there any more.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import traceback
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
SECONDS = 120
"""A test that hangs without its safeguard has failed after so long."""


class Break(NamedTuple):
    """One safeguard: where it stands, what it is, what is put in its place, who must notice."""

    point: str
    file: str
    code: str
    broken: str
    test: str


HOSTILE = "unit/runlog/test_hostile.py::"
DECODING = "unit/runlog/test_decoding.py::"
HIDDEN = "unit/runlog/test_hidden.py::"
WRITER = "unit/runlog/test_writer.py::"
CRASH = "unit/runlog/test_crash.py::"
ALERTS = "unit/sinks/listeners/test_alerts.py::"
EDGE = "unit/torch/dropins/test_edge_numbers.py::"
ODD = "cli/test_odd_scripts.py::"
RECOVERING = "unit/torch/recovery/test_recovering.py::"
SNAPSHOTS = "unit/recovery/test_files.py::"
SERVE = "unit/serve/test_serve.py::"
BLAME = "unit/launch/test_blame.py::"
STEPS = "unit/launch/torch_script/test_observer.py::"
RECOVERY = "unit/torch/recovery/test_recovering.py::"
TOO_HOT = (
    "unit/recovery/test_judge.py::"
    "test_a_rate_that_is_too_hot_from_the_start_is_lowered_and_stays_so_where_that_pays"
)
RESTORED = RECOVERY + "test_a_restored_training_goes_on_as_if_never_interrupted"
SNAPSHOTS = "unit/recovery/test_files.py::"

BREAKS = [
    Break(
        "1 threads",
        "runlog/hidden.py",
        "self._ident = _thread.start_new_thread(self._run, ())",
        "(t := threading.Thread(target=self._run, daemon=True)).start(); self._ident = t.ident",
        HIDDEN + "test_a_script_that_joins_all_threads_ends_and_loses_no_step",
    ),
    Break(
        "1 threads",
        "runlog/hidden.py",
        "active.pop(_thread.get_ident(), None)",
        "pass",
        HIDDEN + "test_a_library_that_asks_for_the_current_thread_lists_ours_for_a_moment_only",
    ),
    Break(
        "1 threads",
        "runlog/hidden.py",
        "if isinstance(thread, threading._DummyThread):",
        "if True:",
        HIDDEN + "test_a_thread_of_somebody_else_stays_listed",
    ),
    Break(
        "1 threads",
        "runlog/hidden.py",
        "signal.valid_signals() - spared",
        "set()",
        HIDDEN + "test_a_signal_that_the_script_waits_for_reaches_the_script",
    ),
    Break(
        "1 threads",
        "runlog/hidden.py",
        "before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - spared)\n"
        "    try:\n        yield\n    finally:",
        "before = signal.valid_signals()\n    try:\n        yield\n    finally:",
        HIDDEN + "test_a_signal_that_the_script_waits_for_reaches_the_script",
    ),
    Break(
        "1 fork",
        "runlog/pausing.py",
        "asked = [thread for thread in threads if thread.ask_to_pause(deadline)]",
        "asked = threads[:0]",
        HIDDEN + "test_a_fork_finds_no_thread_of_ours_and_costs_no_step",
    ),
    Break(
        "1 fork",
        "runlog/pausing.py",
        "        if paused:\n            self.start()",
        "",
        HIDDEN + "test_a_fork_finds_no_thread_of_ours_and_costs_no_step",
    ),
    Break(
        "1 fork",
        "runlog/pausing.py",
        " or not self.is_here:\n            return  # in",
        ":\n            return  # in",
        HIDDEN + "test_a_fork_finds_no_thread_of_ours_and_costs_no_step",
    ),
    Break(
        "2 cost",
        "calibration/estimate.py",
        "if places.size <= most:",
        "if True:",
        "unit/calibration/test_recommending.py::"
        "test_a_long_run_is_asked_at_a_bounded_number_of_places",
    ),
    Break(
        "2 cost",
        "runlog/thinning.py",
        "if len(run) <= LONG:",
        "if True:",
        "unit/runlog/test_thinning.py::test_a_long_run_keeps_its_ends_and_its_landmarks",
    ),
    Break(
        "2 memory",
        "runlog/store.py",
        "if len(self._layouts) > MAX_LAYOUTS:",
        "if False:",
        WRITER + "test_another_set_of_tensors_at_every_step_is_remembered_for_a_while_only",
    ),
    Break(
        "3 bombs",
        "runlog/encode.py",
        "stream.decompress(blob, most + 1)",
        "stream.decompress(blob)",
        HOSTILE + "test_a_bomb_is_not_unpacked",
    ),
    Break(
        "3 bombs",
        "runlog/encode.py",
        "if len(data) > most or not stream.eof:",
        "if False:",
        HOSTILE + "test_packed_columns_are_held_to_their_size",
    ),
    Break(
        "3 bombs",
        "runlog/encode.py",
        "if len(places) and not 0 <= places.min() <= places.max() < into.size:",
        "if False:",
        DECODING + "test_packed_bytes_are_the_array_or_refused",
    ),
    Break(
        "3 tables",
        "runlog/reader.py",
        "if written[name] != statement:",
        "if False:",
        HOSTILE + "test_the_sentence_says_what_is_wrong",
    ),
    Break(
        "3 tables",
        "runlog/reader.py",
        "WHERE type = 'table'",
        "",
        HOSTILE + "test_a_view_in_the_place_of_a_table_is_never_asked",
    ),
    Break(
        "3 queries",
        "runlog/reader.py",
        "connection.set_progress_handler(count, WORK)",
        "pass",
        HOSTILE + "test_a_query_that_works_for_too_long_is_stopped",
    ),
    Break(
        "3 sizes",
        "runlog/reader.py",
        "if not whole.all():",
        "if False:",
        HOSTILE + "test_the_sentence_says_what_is_wrong",
    ),
    Break(
        "3 sizes",
        "runlog/reader.py",
        "if not 0 <= numbers.min() <= numbers.max() < self._tensors:",
        "if False:",
        HOSTILE + "test_the_sentence_says_what_is_wrong",
    ),
    Break(
        "3 files",
        "runlog/reader.py",
        "if not stat.S_ISREG(kind):",
        "if False:",
        HOSTILE + "test_a_pipe_is_not_opened",
    ),
    Break(
        "3 files",
        "runlog/reader.py",
        "        _check_side_files(path)\n",
        "",
        HOSTILE + "test_a_folder_in_the_place_of_a_journal",
    ),
    Break(
        "3 files",
        "runlog/reader.py",
        "except ValueError as error:  # a path with a zero character",
        "except KeyError as error:",
        HOSTILE + "test_names_that_cannot_be",
    ),
    Break(
        "3 files",
        "runlog/reader.py",
        "UnicodeDecodeError, OverflowError, MemoryError",
        "OverflowError, MemoryError",
        HOSTILE + "test_the_sentence_says_what_is_wrong",
    ),
    Break(
        "3 files",
        "cli/__init__.py",
        "raise click.ClickException(_printable(_why(error))) from error",
        "raise",
        HOSTILE + "test_a_place_that_cannot_be_written_is_told_in_a_sentence",
    ),
    Break(
        "3 files",
        "lint/linting.py",
        " and path.is_file()  # a pipe is no file",
        "",
        "unit/lint/test_command.py::test_a_pipe_among_the_files_is_not_opened",
    ),
    Break(
        "3 json",
        "runlog/decoding.py",
        "if isinstance(value, (list, dict)) and not depth:",
        "if False:",
        HOSTILE + "test_json_that_is_none_of_ours",
    ),
    Break(
        "3 json",
        "runlog/decoding.py",
        "if len(digits) > LONGEST_NUMBER:",
        "if False:",
        HOSTILE + "test_the_sentence_says_what_is_wrong",
    ),
    Break(
        "3 json",
        "runlog/decoding.py",
        'return words.encode("utf-8", "replace").decode("utf-8")',
        "return words",
        HOSTILE + "test_json_keeps_what_is_sound",
    ),
    Break(
        "3 json",
        "runlog/decoding.py",
        "if not gaps and any(entry is None for entry in entries):",
        "if False:",
        DECODING + "test_what_was_found_once_is_not_found_again",
    ),
    Break(
        "3 json",
        "runlog/decoding.py",
        "if isinstance(hint, type) and is_typeddict(hint):",
        "if is_typeddict(hint):\n        return _anything\n    if False:",
        DECODING + "test_what_was_found_once_is_not_found_again",
    ),
    Break(
        "3 json",
        "rules/checks/sg606_double_softmax.py",
        "elif before in _WHAT:",
        "else:",
        DECODING + "test_what_was_found_once_is_not_found_again",
    ),
    Break(
        "3 json",
        "runlog/decoding.py",
        "abs(value) > MOST_WHOLE",
        "abs(value) >= INT64",
        DECODING + "test_what_was_found_once_is_not_found_again",
    ),
    Break(
        "3 json",
        "runlog/decoding.py",
        "sound[key] = fields.get(key, _anything)(value)",
        "sound[key] = value",
        DECODING + "test_what_was_found_once_is_not_found_again",
    ),
    Break(
        "3 json",
        "runlog/decoding.py",
        "if not isinstance(value, int) or not low <= value <= high:",
        "if False:",
        DECODING + "test_rows_of_tables_are_typed_or_refused",
    ),
    Break(
        "3 snapshots",
        "torch/recovery/training_state.py",
        'map_location="cpu", weights_only=True',
        'map_location="cpu", weights_only=False',
        RECOVERING + "test_a_snapshot_from_elsewhere_runs_nothing_and_changes_nothing",
    ),
    Break(
        "3 snapshots",
        "torch/recovery/on_disk.py",
        "            self._require_readable(data, names)\n",
        "",
        RECOVERING + "test_a_snapshot_that_could_not_be_read_again_is_not_written",
    ),
    Break(
        "3 snapshots",
        "recovery/files.py",
        'path.read_bytes() if path.is_file() else b""',
        "path.read_bytes()",
        SNAPSHOTS + "test_a_pipe_among_the_snapshots_is_not_opened",
    ),
    Break(
        "3 snapshots",
        "recovery/batches.py",
        "if type(number) is int",
        "if int(number) >= 0",
        SNAPSHOTS + "test_a_list_that_is_none_of_ours_leaves_out_what_is_sound_in_it",
    ),
    Break(
        "4 threads of the script",
        "launch/torch_script/install.py",
        "with self._making:",
        "if True:",
        STEPS + "test_threads_that_begin_together_make_one_observer",
    ),
    Break(
        "4 threads of the script",
        "launch/torch_script/install.py",
        "self._thread = threading.local()\n",
        "self._thread = type('All', (), {})()\n",
        STEPS + "test_a_loss_is_heard_while_another_thread_is_inside_its_backward",
    ),
    Break(
        "5 tracebacks",
        "torch/internals/inlay.py",
        "if not _same(_code_of(tree, function), function.__code__):",
        "if True:",
        ODD + "test_an_odd_script_does_the_same[backward raises and is caught]",
    ),
    Break(
        "5 tracebacks",
        "launch/process.py",
        "sys.excepthook = _without_our_frames(sys.excepthook)",
        "pass",
        ODD + "test_an_odd_script_does_the_same[a hook raises]",
    ),
    Break(
        "5 tracebacks",
        "invisible.py",
        "error.__traceback__ = None if trace is None else trace.tb_next",
        "pass",
        ODD + "test_an_odd_script_does_the_same[a closure raises and is caught]",
    ),
    Break(
        "5 pickles",
        "torch/step/copies.py",
        "if key not in _OURS",
        "if key",
        "unit/torch/step/test_attaching.py::test_copies_of_a_class_that_hands_over_all_its_attributes",
    ),
    Break(
        "5 tracebacks",
        "launch/blame.py",
        "while entry is not None and is_ours(entry):\n            entry = entry.tb_next",
        "pass",
        BLAME + "test_functions_of_ours_step_aside_where_the_script_catches",
    ),
    Break(
        "5 exit",
        "launch/session.py",
        "writer.stay_open_at_exit()",
        "pass",
        ODD + "test_steps_at_exit_are_recorded",
    ),
    Break(
        "5 children",
        "launch/session.py",
        'self._writer, self._gave_up, self.path = None, False, ""',
        "pass",
        "cli/test_run_torch.py::test_after_a_fork_and_os_exit_both_run_files_are_whole",
    ),
    Break(
        "6 secrets",
        "runlog/facts.py",
        "return not value or bool(_HARMLESS.fullmatch(value)) or _is_there(value, folder)",
        "return True",
        WRITER + "test_only_what_is_harmless_by_its_form_is_written",
    ),
    Break(
        "6 secrets",
        "runlog/facts.py",
        "secret = _speaks_of_secret(name)",
        "secret = False",
        WRITER + "test_secrets_in_the_command_line_are_blotted_out",
    ),
    Break(
        "6 secrets",
        "runlog/facts.py",
        "behind_secret = not behind_secret and (unread if blots else secret)",
        "behind_secret = False",
        WRITER + "test_secrets_in_the_command_line_are_blotted_out",
    ),
    Break(
        "6 secrets",
        "runlog/facts.py",
        '"command": list(sys.argv),',
        '"command": list(sys.argv), "environment": dict(os.environ),',
        WRITER + "test_no_environment_variable_is_written",
    ),
    Break(
        "6 secrets",
        "runlog/writer.py",
        "os.O_WRONLY, 0o600)",
        "os.O_WRONLY, 0o644)",
        WRITER + "test_a_run_file_is_for_its_owner_alone",
    ),
    Break(
        "6 secrets",
        "compare/show.py",
        "shown = harmless(grid.arguments, script.parent)",
        "shown = grid.arguments",
        "cli/test_compare.py::test_results_as_json_and_page",
    ),
    Break(
        "6 who may ask",
        "serve/guard.py",
        "if len(hosts) == 1 else None",
        "if hosts else None",
        SERVE + "test_only_this_machine_is_answered_and_only_for_reading",
    ),
    Break(
        "6 who may ask",
        "serve/serving.py",
        '        ws="none",\n',
        "",
        SERVE + "test_only_this_machine_is_answered_and_only_for_reading",
    ),
    Break(
        "6 who may ask",
        "serve/guard.py",
        'if not self._token and named[1].lower().strip("[]") not in LOCAL:',
        "if False:",
        SERVE + "test_only_this_machine_is_answered_and_only_for_reading",
    ),
    Break(
        "6 who may ask",
        "serve/guard.py",
        "return self._without_token(request) if self._token else None",
        "return None",
        SERVE + "test_elsewhere_needs_the_token_that_is_printed",
    ),
    Break(
        "6 who may ask",
        "serve/guard.py",
        'here = "/" + request.url.path.lstrip("/")',
        "here = request.url.path",
        SERVE + "test_elsewhere_needs_the_token_that_is_printed",
    ),
    Break(
        "6 live page",
        "serve/folder.py",
        'before.state == "unreadable" and began > row.last_read + AGAIN_SECONDS',
        "False",
        "unit/serve/test_folder.py::test_a_file_that_could_not_be_read_is_tried_again",
    ),
    Break(
        "7 text",
        "text.py",
        'return cast("Shown", _UNPRINTABLE.sub("\\ufffd", value))',
        "return value",
        "unit/test_text.py",
    ),
    Break(
        "7 text",
        "text.py",
        '    "\\u061c\\u200e\\u200f\\u202a-\\u202e\\u2066-\\u2069"',
        '    "\\u061c"',
        "unit/test_text.py",
    ),
    Break(
        "7 text",
        "watch/frame.py",
        "{printable(last)}",
        "{last}",
        "unit/test_text.py::test_a_command_shows_foreign_text[watch]",
    ),
    Break(
        "7 text",
        "text.py",
        "{printable(key): printable(item)",
        "{key: printable(item)",
        "unit/test_text.py::test_what_is_printable_holds_for_names_too",
    ),
    Break(
        "8 full disk",
        "runlog/writer.py",
        "store.add_note({**facts, STOPPED: counts})",
        "pass",
        CRASH + "test_a_disk_that_fills_up_lets_the_training_end_well",
    ),
    Break(
        "8 lock",
        "runlog/store.py",
        'if last_try or "locked" not in str(error):',
        "if True:",
        WRITER + "test_a_reader_that_holds_the_lock_delays_but_does_not_end_the_recording",
    ),
    Break(
        "8 removed file",
        "runlog/store.py",
        "        if self._is_gone():\n            raise",
        "        if False:\n            raise",
        WRITER + "test_a_file_that_is_removed_is_told_at_once",
    ),
    Break(
        "8 force",
        "runlog/writer.py",
        "if header and is_being_written(path):",
        "if False:",
        WRITER + "test_a_file_that_is_being_written_is_not_replaced",
    ),
    Break(
        "8 no thread",
        "runlog/pausing.py",
        "        except RuntimeError as error:\n            self._over(error)",
        "        except KeyError as error:\n            self._over(error)",
        HIDDEN + "test_where_no_thread_can_be_had_the_training_goes_on",
    ),
    Break(
        "8 slow disk",
        "runlog/writer.py",
        "self._recorder.missed(item.record)",
        "pass",
        WRITER + "test_a_stuck_disk_costs_steps_but_they_are_counted",
    ),
    Break(
        "8 whose error",
        "launch/blame.py",
        "    if not entries or not is_ours(entries[-1]):\n        return False",
        "    if not entries:\n        return False",
        BLAME + "test_an_error_of_the_script_shows_no_frame_of_ours",
    ),
    Break(
        "8 whose error",
        "launch/process.py",
        "ours = raised_by_us(error)",
        "ours = False",
        BLAME + "test_an_error_of_ours_shows_our_frames_and_is_not_called_the_scripts",
    ),
    Break(
        "9 addresses",
        "sinks/listeners/alerts.py",
        "            check_address(address)",
        "            pass",
        ALERTS + "test_an_address_that_cannot_be_is_refused_at_the_start_and_not_repeated",
    ),
    Break(
        "9 redirects",
        "sinks/delivery.py",
        "if code not in (307, 308) or (before.scheme, before.netloc) != "
        "(after.scheme, after.netloc):",
        "if code not in (302, 303, 307, 308):",
        ALERTS + "test_a_redirect_is_followed_to_the_same_place_only",
    ),
    Break(
        "9 redirects",
        "sinks/addresses.py",
        "asset.http_redirects = False",
        "pass",
        ALERTS + "test_a_service_of_apprise_follows_no_redirect",
    ),
    Break(
        "9 redirects",
        "sinks/addresses.py",
        'if not hasattr(apprise.AppriseAsset, "http_redirects"):',
        "if False:",
        ALERTS + "test_an_apprise_that_would_follow_redirects_is_refused",
    ),
    Break(
        "9 slow servers",
        "sinks/delivery.py",
        "if not self._thread.join(DELIVERY_SECONDS):",
        "if not self._thread.join():",
        ALERTS + "test_a_server_without_end_is_given_up",
    ),
    Break(
        "9 slow servers",
        "sinks/delivery.py",
        "            self._address.hang_up()\n",
        "",
        ALERTS + "test_a_server_without_end_is_given_up",
    ),
    Break(
        "9 slow servers",
        "sinks/delivery.py",
        "        fp.close()  # urllib reads",
        "        # urllib reads",
        ALERTS + "test_the_body_of_a_redirect_is_not_read",
    ),
    Break(
        "9 addresses",
        "sinks/delivery.py",
        "urllib.request.Request(webhook.url, body, headers)",
        "urllib.request.Request(address, body, headers)",
        ALERTS + "test_an_address_is_asked_for_as_a_browser_would",
    ),
    Break(
        "9 addresses",
        "sinks/addresses.py",
        'return spelt if re.fullmatch(r"[A-Za-z0-9._-]*", spelt) else ""',
        "return spelt",
        ALERTS + "test_an_address_that_cannot_be_is_refused_at_the_start_and_not_repeated",
    ),
    Break(
        "9 truth",
        "sinks/delivery.py",
        "        if failures:",
        "        if False:",
        ALERTS + "test_a_webhook_that_fails_costs_a_warning",
    ),
    Break(
        "9 address",
        "sinks/delivery.py",
        "return f\"{type(error).__name__}{f': {detail}' if detail else ''}\"",
        "return f\"{type(error).__name__} {error} {getattr(error, 'filename', '')} S3CRET\"",
        ALERTS + "test_the_address_is_in_no_warning_and_no_name",
    ),
    Break(
        "10 numbers",
        "torch/gradients/outcome.py",
        "return broken | ~namespace(stats.norms).isfinite(stats.total_norm)",
        "return broken",
        EDGE + "test_finite_gradients_whose_norm_no_float_holds_are_skipped",
    ),
    Break(
        "10 numbers",
        "torch/gradients/pieces.py",
        "values.masked_fill_(torch.isinf(magnitudes), 0)",
        "pass",
        EDGE + "test_it_is_zeroed_as_a_whole",
    ),
    Break(
        "10 numbers",
        "torch/gradients/pieces.py",
        "if len(set(map(torch.Tensor.data_ptr, grads))) == len(grads):",
        "if True:",
        EDGE + "test_one_tensor_that_is_the_gradient_of_two_parameters_is_scaled_once",
    ),
    Break(
        "10 numbers",
        "kernels/reference.py",
        "to_odd(product) if chunk.dtype in _TWICE_ROUNDED else product",
        "product",
        EDGE + "test_products_of_8_bits_are_rounded_once",
    ),
    Break(
        "10 numbers",
        "kernels/auto.py",
        "    if odd:  # first: where one of them cannot be written, nothing is\n"
        "        reference.scale_([tensors[i] for i in odd], each[odd])\n"
        "    for index in plain:",
        "    for index in [*plain, *odd]:",
        EDGE + "test_where_one_gradient_cannot_be_written_none_is",
    ),
    Break(
        "10 numbers",
        "kernels/reference.py",
        "    return values.detach()  # a view",
        "    return values  # a view",
        EDGE + "test_a_compressed_complex_gradient_is_scaled",
    ),
    Break(
        "10 numbers",
        "torch/step/folding.py",
        "if scale > LARGEST * float(coef):",
        "if False:",
        "unit/torch/step/test_folding.py::"
        "test_where_it_would_not_be_exact_gradients_are_scaled_in_place",
    ),
    Break(
        "10 numbers",
        "torch/gradients/pieces.py",
        "if grad.layout is torch.strided and _is_expanded(grad):",
        "if False:",
        EDGE + "test_an_expanded_gradient_is_scaled_and_clamped",
    ),
    Break(
        "10 numbers",
        "kernels/reference.py",
        "    finite = torch.isfinite(magnitude)\n    clean =",
        "    finite = torch.isfinite(chunk)\n    clean =",
        EDGE + "test_a_complex_magnitude_that_no_float_holds_counts_as_not_finite",
    ),
    Break(
        "10 numbers",
        "torch/dropins/arguments.py",
        "except (TypeError, ValueError, RuntimeError):",
        "except KeyError:",
        EDGE + "test_an_argument_that_is_no_number_is_named",
    ),
    Break(
        "11 the project",
        "../../docs/security.md",
        "`test_a_bomb_is_not_unpacked`",
        "`test_a_bomb_is_unpacked`",
        "docs/test_security.py",
    ),
    Break(
        "recovery: young",
        "recovery/triggers.py",
        "return max(1.0, grown / self._accepted) ** 2",
        "return 1.0",
        "unit/recovery/test_judge.py::test_what_a_young_training_has_not_seen_yet_is_no_spike",
    ),
    Break(
        "recovery: young",
        "recovery/judge.py",
        'trigger = trigger if regretted is None else DIVERGED if regretted else ""',
        "trigger = DIVERGED if regretted else trigger",
        "unit/recovery/test_judge.py::test_a_divergence_that_a_replay_denies_is_none",
    ),
    Break(
        "recovery: too hot",
        "recovery/beginning.py",
        "if times is None or not times > FAR:",
        "if times is None:",
        TOO_HOT,
    ),
    Break(
        "recovery: too hot",
        "recovery/beginning.py",
        "return self._level() < PAYS * self._hot",
        "return True",
        TOO_HOT,
    ),
    Break(
        "recovery: NaN",
        "torch/recovery/snapshots.py",
        "return state if sound else None",
        "return state",
        RECOVERY + "test_weights_with_nan_are_never_kept_as_good",
    ),
    Break(
        "recovery: NaN",
        "torch/recovery/snapshots.py",
        "[*parameters_of(optimizer), *state_tensors(optimizer)]",
        "[*parameters_of(optimizer)]",
        RECOVERY + "test_an_optimizer_state_with_nan_is_never_kept_as_good",
    ),
    Break(
        "recovery: NaN",
        "torch/recovery/snapshots.py",
        "and not any(bool(each.isnan().any()) for each in averages)",
        "",
        RECOVERY + "test_an_average_with_nan_is_never_kept_as_good",
    ),
    Break(
        "recovery: kill -9",
        "recovery/files.py",
        'partial = path.with_suffix(".partial")',
        "partial = path",
        SNAPSHOTS + "test_a_snapshot_is_not_there_before_it_is_whole",
    ),
    Break(
        "recovery: checksum",
        "recovery/files.py",
        "return content if hashlib.sha256(content).digest() == data[len(MAGIC) : head] else None",
        "return content",
        SNAPSHOTS + "test_a_broken_one_is_passed_over",
    ),
    Break(
        "recovery: budget",
        "recovery/judge.py",
        "if self.rollbacks >= self.ladder.rollback:",
        "if False:",
        RECOVERY + "test_the_budget_ends_with_the_last_good_step",
    ),
    Break(
        "recovery: generators",
        "torch/recovery/snapshots.py",
        "set_generators(saved)",
        "pass",
        RESTORED + "[SGD]",
    ),
    Break(
        "recovery: schedule and scaler",
        "torch/recovery/snapshots.py",
        'missing = self.partners.restore(saved["partners"])',
        "missing: list[str] = []",
        RESTORED + "[AdamW-amsgrad]",
    ),
    Break(
        "recovery: buffers",
        "torch/recovery/snapshots.py",
        'self.buffers.put_back(saved["buffers"])',
        "pass",
        RESTORED + "[Adagrad]",
    ),
    Break(
        "recovery: optimizer",
        "torch/recovery/training_state.py",
        '    optimizer.load_state_dict(saved["optimizer"])',
        "    pass",
        RESTORED + "[AdamW]",
    ),
    Break(
        "recovery: ranks",
        "torch/recovery/recovering.py",
        "return agreed(reading, parameters_of(optimizer)[0].device) if is_job() else reading",
        "return reading",
        "distributed/test_one_decision.py::test_all_ranks_skip_and_roll_back_together",
    ),
    Break(
        "recovery: ranks",
        "torch/recovery/agreement.py",
        "common = smallest(step, device)",
        "common = step",
        "distributed/test_one_decision.py::"
        "test_ranks_go_on_from_the_newest_snapshot_that_is_whole_on_all_of_them",
    ),
]


def copied(folder: Path) -> None:
    """The package, its tests and what these read, in another folder."""
    for name in ("src", "tests", "docs", "tools"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("conftest.py", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)


def outcome(folder: Path, test: str) -> int:
    """How pytest ends on one test, run in a fork that has the frameworks loaded."""
    process = os.fork()
    if not process:
        try:
            run_test(folder, test)
        except BaseException:  # must not reach the folder's own end
            traceback.print_exc()
        os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def run_test(folder: Path, test: str) -> None:
    """Be pytest; never returns."""
    os.chdir(folder)
    with (folder / "log.txt").open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.environ["PYTHONPATH"] = str(folder / "src")
    sys.path.insert(0, str(folder / "src"))
    options = ("-q", "-x", "-p", "no:cacheprovider", f"--timeout={SECONDS}")
    os._exit(int(pytest.main([*options, f"tests/{test}"])))


def tried(one: Break, folder: Path, sound: dict[str, int]) -> str:
    """What is wrong with a safeguard's test; empty where it fails as it should."""
    path = folder / "src" / "steadygrad" / one.file
    code = path.read_text()
    if code.count(one.code) != 1:
        return f"stands {code.count(one.code)} times in the source"
    if one.test not in sound:
        sound[one.test] = outcome(folder, one.test)
    if sound[one.test] != 0:
        print((folder / "log.txt").read_text()[-2000:], file=sys.stderr)
        return f"its test ends with {sound[one.test]} where nothing is broken"
    path.write_text(code.replace(one.code, one.broken))
    status = outcome(folder, one.test)
    path.write_text(code)
    if status not in (0, 1):  # neither passed nor failed
        print((folder / "log.txt").read_text()[-4000:], file=sys.stderr)
    return "" if status == 1 else f"its test ends with {status}"


def main() -> int:
    """Break what was asked for."""
    words = sys.argv[1:]
    chosen = [
        one
        for one in BREAKS
        if not words or any(w in one.point + one.file + one.test for w in words)
    ]
    failed = 0
    sound: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as scratch:
        copied(Path(scratch))
        for one in chosen:
            wrong = tried(one, Path(scratch), sound)
            failed += bool(wrong)
            what = f"{one.point}: {one.test.split('::')[-1]}: {one.code.strip()[:60]}"
            print(f"{wrong or 'fails'}: {what}", flush=True)
    print(f"{len(chosen) - failed} of {len(chosen)} tests fail where their safeguard is broken")
    return int(failed > 0)


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    import numpy  # noqa: F401
    import pytest
    import torch

    torch.set_num_threads(1)
    sys.exit(main())
