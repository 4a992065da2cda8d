"""Breaks guards one by one, each in a copy of the server, and shows that the test of it fails then.

    make guards [ARGS="publish lease"]

Arguments are words of which a guard's name must have one. Exits with 1 where a test passes although its guard is
broken, or where the code that is to be broken has changed. Tests of state run on SQLite here, but for those of
PostgreSQL alone.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
SERVER = ROOT / "server"
LIMIT_S = 180
"""A test that has not ended by then waits for what a broken guard does not bring, and counts as failed."""


@dataclass(frozen=True)
class Guard:
    """A piece of code that a test guards, and what it reads when broken."""

    name: str
    test: str
    file: str
    old: str
    new: str = ""


GUARDS = [
    Guard(
        "harm: names are matched whole",
        "tests/security/test_names.py::test_every_text_of_every_request",
        "luthier/names.py",
        "_FORMS[form].fullmatch(name)",
        "_FORMS[form].match(name)",
    ),
    Guard(
        "harm: paths that lead out of an archive are refused",
        "tests/unit/test_archives.py::test_paths_that_lead_out_are_refused",
        "luthier/archives.py",
        '    if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:\n',
        "    if False:\n",
    ),
    Guard(
        "harm: an archive's members are bounded by what they unpack to",
        "tests/unit/test_archives.py::test_all_problems_come_at_once",
        "luthier/archives.py",
        "    if info.file_size > 2**20 and info.file_size > MAX_RATIO * info.compress_size:\n",
        "    if False:\n",
    ),
    Guard(
        "harm: an image's pixels are counted before they are decoded",
        "tests/unit/test_images.py::test_too_many_pixels_are_refused_before_they_are_decoded",
        "luthier/images.py",
        "        if width * height > MAX_PIXELS:\n",
        "        if False:\n",
    ),
    Guard(
        "harm: no code in a checkpoint is run",
        "tests/security/test_checkpoints.py::test_checkpoints_with_code",
        "luthier/toolkit/backbones.py",
        'map_location="cpu", weights_only=True)',
        'map_location="cpu", weights_only=False)',
    ),
    Guard(
        "harm: an architecture is a plain word",
        "tests/security/test_checkpoints.py::test_architectures_that_would_be_fetched",
        "luthier/services/bases.py",
        "        if not _ARCHITECTURE.fullmatch(request.architecture):\n",
        "        if not request.architecture:\n",
    ),
    Guard(
        "harm: a graph is read before it is loaded",
        "tests/security/test_checkpoints.py::test_bundles_whose_hashes_fit",
        "luthier/inference/predictor.py",
        "        graphs.check(directory / MODEL_FILE)\n",
    ),
    Guard(
        "harm: weights in other files are found",
        "tests/security/test_checkpoints.py::test_graphs_that_are_never_loaded",
        "luthier/inference/graphs.py",
        "        if number == _TENSOR_EXTERNAL or (number == _TENSOR_LOCATION and value):\n",
        "        if False:\n",
    ),
    Guard(
        "harm: links in a bundle are not followed",
        "tests/security/test_checkpoints.py::test_bundles_whose_hashes_fit",
        "luthier/bundle.py",
        "if path.is_symlink()]",
        "if False]",
    ),
    Guard(
        "harm: an error that nobody foresaw says an id alone",
        "tests/security/test_secrets.py::test_errors_that_nobody_foresaw",
        "luthier/logs.py",
        """message=f"internal error {id}; the server's log explains it\"""",
        "message=str(error)",
    ),
    Guard(
        "harm: secrets are kept out of the log",
        "tests/security/test_secrets.py::test_errors_that_nobody_foresaw",
        "luthier/logs.py",
        "            _without_secrets,\n",
    ),
    Guard(
        "harm: secrets are kept out of errors",
        "tests/unit/test_errors.py::test_secrets_are_kept_out",
        "luthier/errors.py",
        "        self.message = redact(message)\n",
        "        self.message = message\n",
    ),
    Guard(
        "harm: bytes that are no message are told as such",
        "tests/security/test_oversized.py::test_bytes_that_are_no_message",
        "luthier/services/interceptor.py",
        "with_behavior(handler, wrapped, _guarded(handler.request_deserializer))",
        "with_behavior(handler, wrapped)",
    ),
    Guard(
        "harm: page tokens are a stranger's word",
        "tests/unit/test_paging.py",
        "luthier/paging.py",
        "[type(part) for part in key] != list(kinds)",
        "False",
    ),
    Guard(
        "harm: a status fits into a call's metadata",
        "tests/unit/test_statuses.py::test_a_caller_sees_why_a_long_name_is_none",
        "luthier/services/interceptor.py",
        "    status = fitting(status)\n",
    ),
    Guard(
        "harm: instances are counted before they are unpacked",
        "tests/security/test_oversized.py::test_a_million_instances",
        "luthier/services/prediction.py",
        "    _check_count(packed)\n",
    ),
    Guard(
        "harm: health has a thread of its own",
        "tests/security/test_oversized.py::test_health_waits_for_no_call_that_waits_for_the_database",
        "luthier/app.py",
        "PooledServer(server, self._checks, self._streams)",
        "pooled",
    ),
    Guard(
        "end: calls in flight are finished",
        "tests/faults/test_ending.py::test_sigterm_under_load",
        "luthier/app.py",
        "self._server.stop(self._settings.drain_s)",
        "self._server.stop(0)",
    ),
    Guard(
        "end: health says that the server ends",
        "tests/faults/test_ending.py::test_sigterm_under_load",
        "luthier/app.py",
        "        self._health.enter_graceful_shutdown()\n",
    ),
    Guard(
        "end: a signal that comes while the process waits for one ends it",
        "tests/unit/test_signals.py",
        "luthier/signals.py",
        "from queue import SimpleQueue\n",
        "from queue import Queue as SimpleQueue\n",
    ),
    Guard(
        "load: a lane takes no more than may wait",
        "tests/faults/test_load.py::test_twice_as_many_calls_as_can_be_answered",
        "luthier/inference/lanes.py",
        "        if len(self._waiting) >= self._most_waiting:\n",
        "        if False:\n",
    ),
    Guard(
        "load: nothing is computed for who has gone",
        "tests/unit/test_lanes.py::test_who_has_gone_or_whose_time_is_over_costs_no_work",
        "luthier/inference/lanes.py",
        "            if not call.caller.is_there():\n",
        "            if False:\n",
    ),
    Guard(
        "load: an expired call leaves its place",
        "tests/faults/test_load.py::test_calls_that_nobody_waits_for",
        "luthier/inference/lanes.py",
        "        if not call.turn.acquire(timeout=call.patience_s()):\n",
        "        if not call.turn.acquire(timeout=call.patience_s()) and False:\n",
    ),
    Guard(
        "load: of calls that fail together each is computed alone",
        "tests/unit/test_lanes.py::test_a_bad_call_fails_alone",
        "luthier/inference/lanes.py",
        "            if len(batch) == 1:\n",
        "            if batch:\n",
    ),
    Guard(
        "load: streams have threads of their own",
        "tests/faults/test_load.py::test_many_who_only_hold_on",
        "luthier/services/binding.py",
        "        pool = self._streams if long else self._control\n",
        "        pool = self._control\n",
    ),
    Guard(
        "load: clients may ping every 20 s",
        "tests/faults/test_load.py::test_pings_as_often_as_allowed",
        "luthier/app.py",
        '    "grpc.http2.min_ping_interval_without_data_ms": 20_000,\n',
        "",
    ),
    Guard(
        "load: tensors whose lengths are their own go alone",
        "tests/unit/test_served.py::test_tensors_go_together_where_nobody_would_see_it[any length]",
        "luthier/inference/served.py",
        "self.most_rows if is_fixed else 1",
        "self.most_rows",
    ),
    Guard(
        "a request id that is not safe to repeat is replaced",
        "tests/e2e/test_request_ids.py::test_an_id_that_is_not_safe_to_repeat_is_replaced[-rf]",
        "luthier/telemetry/calls.py",
        "given if _SAFE.fullmatch(given) else uuid.uuid4().hex",
        "given or uuid.uuid4().hex",
    ),
    Guard(
        "a method that callers make up is no label of a metric",
        "tests/e2e/test_metrics.py::test_a_method_that_is_not_there_is_counted_without_its_name",
        "luthier/services/interceptor.py",
        "self._meters.method(UNKNOWN)",
        "self._meters.method(handler_call_details.method)",
    ),
    Guard(
        "the caller's trace is continued",
        "tests/e2e/test_traces.py::test_a_trace_goes_from_the_client_to_the_session",
        "luthier/telemetry/traces.py",
        "self._propagator.extract(carrier) if PARENT in carrier else None",
        "None",
    ),
    Guard(
        "random states are restored with a checkpoint",
        "tests/faults/test_trainings.py::test_a_killed_training_goes_on_to_the_same_weights[sqlite]",
        "luthier/toolkit/checkpoint.py",
        '        self._random.bit_generator.state = state["random"]\n        torch.set_rng_state(state["torch"])\n',
    ),
    Guard(
        "an operation whose worker fell silent is taken up",
        "tests/faults/test_queue.py::test_every_acknowledged_operation_ends_whenever_the_server_is_killed[sqlite-4]",
        "luthier/operations.py",
        "due = (OperationMetadata.STATE_PENDING, OperationMetadata.STATE_RUNNING)",
        "due = (OperationMetadata.STATE_PENDING,)",
    ),
    Guard(
        "a result and the end of its operation are one transaction",
        "tests/faults/test_publishing.py::test_a_worker_may_die_at_any_step_of_publishing[sqlite-4]",
        "luthier/worker/__main__.py",
        "            operations.succeed(connection, claim, publish(connection))\n",
        "            version = publish(connection)\n"
        "        with database.write() as connection:\n"
        "            operations.succeed(connection, claim, version)\n",
    ),
    Guard(
        "a stale worker's writes are refused",
        "tests/faults/test_queue.py::test_a_worker_that_slept_past_its_lease_publishes_nothing[sqlite]",
        "luthier/operations.py",
        "    if row.attempt != claim.attempt or row.state != OperationMetadata.STATE_RUNNING:",
        "    if False:",
    ),
    Guard(
        "an operation with a living lease is nobody else's",
        "tests/faults/test_queue.py::test_two_servers_publish_each_operation_once[sqlite-16]",
        "luthier/operations.py",
        "operations.c.lease_until < now(), ",
    ),
    Guard(
        "a request_id is kept with its operation",
        "tests/unit/test_operations.py::test_fifty_submissions_with_one_request_id_are_one_operation[sqlite]",
        "luthier/operations.py",
        '"request_id": _request_id(asked)',
        '"request_id": None',
    ),
    Guard(
        "a database that is away is UNAVAILABLE",
        "tests/faults/test_queue.py::test_a_database_that_falls_over_is_unavailable_for_a_moment",
        "luthier/services/interceptor.py",
        "isinstance(error, sa.exc.OperationalError)",
        "False",
    ),
    Guard(
        "a full disk is told as one",
        "tests/faults/test_resources.py::test_a_full_disk_is_the_reason",
        "luthier/worker/process.py",
        "    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or _NO_SPACE.search(str(error)):",
        "    if False:",
    ),
    Guard(
        "a bundle's files are hashed before they are loaded",
        "tests/faults/test_processes.py::test_a_changed_artefact_is_refused_and_the_older_version_serves_on[sqlite]",
        "luthier/bundle.py",
        " or sha256_of(directory / path) != sha256",
    ),
    Guard(
        "a worker hears of a cancellation",
        "tests/faults/test_resources.py::test_a_cancelled_training_leaves_no_process_and_no_file",
        "luthier/operations.py",
        'return "cancel" if row.cancel_requested else "pause" if',
        'return "pause" if',
    ),
    Guard(
        "want of memory is told as such",
        "tests/faults/test_resources.py::test_too_little_memory_is_the_reason",
        "luthier/worker/process.py",
        "    if isinstance(error, MemoryError) or number == errno.ENOMEM or _NO_MEMORY.search(str(error)):",
        "    if False:",
    ),
    Guard(
        "an older database is migrated",
        "tests/faults/test_releases.py::test_operations_of_the_release_before_go_on[sqlite]",
        "luthier/database/__init__.py",
        "                if current == revision:\n",
        "                if current:\n",
    ),
    Guard(
        "an upload is read chunk by chunk",
        "tests/e2e/test_uploads.py::test_a_large_upload_onto_a_slow_disk_takes_little_memory",
        "luthier/services/datasets.py",
        "        for message in messages:\n            size +=",
        "        for message in list(messages):\n            size +=",
    ),
    Guard(
        "a silent upload is ended",
        "tests/e2e/test_uploads.py::test_a_silent_upload_is_ended_and_its_thread_is_free",
        "luthier/services/watchdog.py",
        "                self._cancel()\n",
    ),
    Guard(
        "an upload keeps what came before it broke",
        "tests/e2e/test_uploads.py::test_a_broken_upload_goes_on_where_it_broke",
        "luthier/services/datasets.py",
        "    file.truncate(offset)\n",
        "    file.truncate(0)\n",
    ),
    Guard(
        "every problem of a data set is told, not the first alone",
        "tests/e2e/test_bad_data.py",
        "luthier/datasets.py",
        "        raise InvalidData(problems)\n",
        "        raise InvalidData(problems[:1])\n",
    ),
    Guard(
        "a killed server leaves no orphans",
        "tests/faults/test_processes.py::test_a_killed_server_leaves_no_orphans_and_its_operations_go_on[sqlite]",
        "luthier/worker/process.py",
        "        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)\n",
    ),
    Guard(
        "bundles are checked before they go into a backup",
        "tests/faults/test_backup.py::test_what_is_damaged_is_neither_saved_nor_restored",
        "luthier/backup.py",
        "        bundle.verify(directory, digest)\n",
    ),
    Guard(
        "an operation waits for an object store that is away",
        "tests/faults/test_object_store.py::test_a_store_that_is_away_delays_and_loses_nothing[sqlite]",
        "luthier/worker/__main__.py",
        "        operations.postpone(claim, error.message)\n",
        "        operations.fail(claim, error.status())\n",
    ),
    Guard(
        "room is made for a model before it is loaded",
        "tests/faults/test_memory.py::test_three_models_under_a_budget_for_two[sqlite-0.0]",
        "luthier/inference/residents.py",
        "        while not self.fits(version, key):\n",
        "        while False:\n",
    ),
    Guard(
        "freed memory is given back to the system",
        "tests/faults/test_memory.py::test_an_unload_gives_back_what_its_load_took",
        "luthier/inference/memory.py",
        "        _malloc_trim(0)\n",
        "        pass\n",
    ),
    Guard(
        "a version's memory waits for no collector",
        "tests/unit/test_pool.py::test_nothing_waits_for_the_collector",
        "luthier/inference/served.py",
        "        self.predictor = predictor\n",
        "        self.predictor, self.itself = predictor, self\n",
    ),
    Guard(
        "a version is loaded before its alias moves",
        "tests/unit/test_pool.py::test_a_version_is_warm_before_its_alias_moves",
        "luthier/inference/pool.py",
        "            failed = self._load_ahead(targets, versions)\n",
        "            failed: dict[Key, LuthierError] = {}\n",
    ),
    Guard(
        "what was unloaded is not loaded by a call",
        "tests/unit/test_pool.py::test_what_was_unloaded_stays_so_until_it_is_wanted",
        "luthier/inference/pool.py",
        "        if key in self._unloaded:\n",
        "        if False:\n",
    ),
    Guard(
        "a version that is replaced is left to its calls",
        "tests/faults/test_swaps.py::test_swaps_under_load_lose_nothing_and_mix_nothing[sqlite]",
        "luthier/inference/residents.py",
        '        log.info("version unloaded", version=name, why=why)\n',
        '        getattr(predictor(), "__dict__", {}).clear()\n',
    ),
    Guard(
        "what a task compares at publication is kept with the version",
        "tests/e2e/test_approximate.py::test_recall_is_measured_when_a_version_is_published",
        "luthier/worker/fine_tune.py",
        "training={**outcome.figures, **compared},",
        "training=outcome.figures,",
    ),
]


def main() -> int:
    words = sys.argv[1:]
    wrong = 0
    for guard in GUARDS:
        if not words or any(word in guard.name for word in words):
            started = time.monotonic()
            verdict = verdict_on(guard)
            wrong += not verdict.startswith("fails")
            print(f"{guard.name}\n    broken, its test {verdict} ({time.monotonic() - started:.0f} s)", flush=True)
    return int(wrong > 0)


def verdict_on(guard: Guard) -> str:
    """Runs a guard's test on a copy of the server in which it is broken."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "server"
        shutil.copytree(SERVER, copy, ignore=shutil.ignore_patterns("__pycache__"))
        path = copy / guard.file
        code = path.read_text(encoding="utf-8")
        if code.count(guard.old) != 1:
            return f"cannot be run: {guard.file} no longer has the code to break"
        path.write_text(code.replace(guard.old, guard.new), encoding="utf-8")
        # In front of the installed server, for the test and for all that it starts.
        environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "400"}
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", guard.test]
        with subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
        ) as process:
            try:
                said, _ = process.communicate(timeout=LIMIT_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                return "fails: it waits for ever"
    failed = [line.partition(" - ")[2] for line in said.splitlines() if line.startswith("FAILED")]
    if failed:
        return f"fails: {failed[0][:150]}"
    return "passes" if process.returncode == 0 else f"cannot be run: pytest ended with {process.returncode}\n{said}"


if __name__ == "__main__":
    sys.exit(main())
