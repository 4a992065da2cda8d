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
ROOTS = (ROOT / "server", ROOT / "clients" / "python", ROOT / "deploy")
LIMIT_S = 180
"""A test that has not ended by then waits for what a broken guard does not bring, and counts as failed."""


@dataclass(frozen=True)
class Guard:
    """A piece of code that a test guards, and what it reads when broken; `file` is in one of the ROOTS."""

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
        "tests/security/test_checkpoints.py::test_reading_runs_nothing",
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
        "deploy: several servers want a database that they share",
        "tests/e2e/test_chart.py::test_what_cannot_work_or_is_open_is_refused",
        "helm/luthier/templates/_helpers.tpl",
        "{{- if and $several (not .Values.database.existingSecret) -}}",
        "{{- if false -}}",
    ),
    Guard(
        "deploy: what is open to strangers is refused",
        "tests/e2e/test_chart.py::test_what_cannot_work_or_is_open_is_refused",
        "helm/luthier/templates/_helpers.tpl",
        "{{- if not .Values.insecure -}}",
        "{{- if false -}}",
    ),
    Guard(
        "deploy: the end of a pod leaves time for the drain",
        "tests/e2e/test_chart.py::test_the_end_leaves_time_for_the_drain",
        "helm/luthier/templates/deployment.yaml",
        "{{ add (int .Values.preStopSeconds) (int (ceil .Values.drainSeconds)) 10 }}",
        "30",
    ),
    Guard(
        "deploy: variables are the names of settings",
        "tests/e2e/test_chart.py::test_every_variable_is_a_setting_and_holds",
        "helm/luthier/templates/configmap.yaml",
        "LUTHIER_DRAIN_S:",
        "LUTHIER_DRAIN_SECONDS:",
    ),
    Guard(
        "deploy: probes ask the port without TLS",
        "tests/e2e/test_chart.py::test_ports_and_probes_are_those_that_the_server_opens",
        "helm/luthier/templates/deployment.yaml",
        """          livenessProbe:
            grpc:
              port: 50052
""",
        """          livenessProbe:
            grpc:
              port: 50051
""",
    ),
    Guard(
        "deploy: callers find servers and no workers",
        "tests/e2e/test_chart.py::test_selectors_find_servers_and_them_alone",
        "helm/luthier/templates/disruption.yaml",
        "      app.kubernetes.io/component: server\n",
    ),
    Guard(
        "deploy: nothing of training is in the image for serving",
        "tests/e2e/test_image.py::test_nothing_of_training_is_installed_and_all_is_pinned",
        "build.sh",
        "EXTRAS=serve,",
        "EXTRAS=serve,train,",
    ),
    Guard(
        "http: JSON may not grow into more than a request may be",
        "tests/e2e/test_http.py::test_json_may_not_grow_into_more_than_the_limit",
        "luthier/web/upstream.py",
        "        if len(message) > self._max_request_bytes:\n",
        "        if False:\n",
    ),
    Guard(
        "http: what is decompressed has the limit of a request",
        "tests/e2e/test_http.py::test_a_bomb_of_gzip_is_refused_before_it_is_whole",
        "luthier/web/bodies.py",
        "            found = inflating.decompress(body, most + 1)\n",
        "            found = inflating.decompress(body)\n",
    ),
    Guard(
        "http: a request that does not come is not waited for",
        "tests/e2e/test_http.py::test_who_sends_no_request_is_not_waited_for",
        "luthier/web/listener.py",
        "            self._head = self.loop.call_later(HEAD_S, self._close_late)\n",
        "            pass\n",
    ),
    Guard(
        "http: a page of another origin is refused",
        "tests/e2e/test_http.py::test_a_page_of_another_origin_may_not_call",
        "luthier/web/application.py",
        '        if origin is not None and "*" not in self._origins and origin not in self._origins:\n',
        "        if False:\n",
    ),
    Guard(
        "http: who has gone is not worked for",
        "tests/e2e/test_http.py::test_a_call_whose_caller_goes_is_cancelled",
        "luthier/web/work.py",
        "    gone.add_done_callback(lambda done: done.cancelled() or call.cancel())\n",
        "",
    ),
    Guard(
        "http: a front that died is started again",
        "tests/e2e/test_http.py::test_a_front_that_dies_is_replaced",
        "luthier/front.py",
        "                self._process = self._spawn(self._socket)\n",
        "                return\n",
    ),
    Guard(
        "http: a port that others reach wants TLS and tokens",
        "tests/e2e/test_http.py::test_others_are_let_in_by_tls_and_tokens_alone",
        "luthier/settings.py",
        ', ("--http-listen", self.http_listen)):\n',
        ",):\n",
    ),
    Guard(
        "http: callers do not say themselves where they come from",
        "tests/security/test_callers.py::test_who_calls_over_http_is_known_by_their_own_address",
        "luthier/services/callers.py",
        '    if not peer.startswith("unix:"):\n',
        "    if PEER not in dict(context.invocation_metadata()):\n",
    ),
    Guard(
        "certificates: what cannot be used is not shown",
        "tests/faults/test_certificates.py::test_certificates_are_rotated_under_calls[1]",
        "luthier/certificates.py",
        "                self._refuse(content, error)\n                return\n",
        "                shown = Shown(*content, serial=0, expires=0.0)\n",
    ),
    Guard(
        "certificates: one that has expired cannot be used",
        "tests/faults/test_certificates.py::test_certificates_are_rotated_under_calls[1]",
        "luthier/certificates.py",
        "    if expires <= time.time():\n",
        "    if False:\n",
    ),
    Guard(
        "certificates: new connections are shown the newest",
        "tests/faults/test_certificates.py::test_certificates_are_rotated_under_calls[1]",
        "luthier/certificates.py",
        "        if shown is self._given:\n",
        "        if shown:\n",
    ),
    Guard(
        "certificates: files replaced one after the other are no error",
        "tests/faults/test_certificates.py::test_files_that_are_replaced_one_after_the_other_are_no_error",
        "luthier/certificates.py",
        "        if content != self._odd:\n",
        "        if False:\n",
    ),
    Guard(
        "certificates: a replica starts with the last good one",
        "tests/faults/test_certificates.py::test_a_replica_is_given_the_last_good_certificate",
        "luthier/certificates.py",
        "            if last_good is None:\n",
        "            if True:\n",
    ),
    Guard(
        "certificates: mutual TLS demands one of the caller",
        "tests/faults/test_certificates.py::test_a_caller_needs_a_certificate",
        "luthier/certificates.py",
        "require_client_authentication=bool(self._files.client_ca)",
        "require_client_authentication=False",
    ),
    Guard(
        "certificates: an authority that was replaced is trusted no more",
        "tests/faults/test_certificates.py::test_an_authority_that_is_replaced_signs_for_nobody_any_more",
        "luthier/certificates.py",
        "        context.sni_callback = self._switch\n",
    ),
    Guard(
        "what others can reach takes TLS and tokens",
        "tests/faults/test_certificates.py::test_what_others_can_reach_is_refused_unless_it_is_safe",
        "luthier/settings.py",
        "(self.tls_certificate and self.tokens)",
        "self.tls_certificate",
    ),
    Guard(
        "metrics that others can reach are encrypted",
        "tests/faults/test_certificates.py::test_metrics_that_others_can_reach_need_one_too",
        "luthier/app.py",
        "self._certificates.context() if self._certificates is not None and is_open else None",
        "None",
    ),
    Guard(
        "a caller that only connects holds up no scrape",
        "tests/faults/test_certificates.py::test_metrics_that_others_can_reach_need_one_too",
        "luthier/telemetry/exposition.py",
        "do_handshake_on_connect=False",
        "do_handshake_on_connect=True",
    ),
    Guard(
        "the port for probes has health alone",
        "tests/faults/test_certificates.py::test_health_is_told_without_a_certificate_on_a_port_of_its_own",
        "luthier/services/probe.py",
        "        self._server.add_generic_rpc_handlers([handler])\n",
        "        from grpc_health.v1 import health_pb2_grpc\n"
        "        health_pb2_grpc.add_HealthServicer_to_server(servicer, self._server)\n",
    ),
    Guard(
        "a token goes nowhere in the open",
        "tests/e2e/test_secure_clients.py::test_a_token_goes_nowhere_in_the_open",
        "luthier_client/channels.py",
        "        if credentials is None and not _is_of_this_machine(place):\n",
        "        if False:\n",
    ),
    Guard(
        "drift: the error is shared by all facts of a window",
        "tests/unit/test_drift.py::test_the_error_is_shared_by_all_facts",
        "luthier/drift.py",
        "        if one.p_value * (len(found) - rank) > error:\n",
        "        if one.p_value > error:\n",
    ),
    Guard(
        "drift: what is sure but too small to matter raises no alarm",
        "tests/unit/test_drift.py::test_a_shift_too_small_to_matter_raises_none_however_sure_it_is",
        "luthier/drift.py",
        '        one.alarm = one.value >= (LEAST_DISTANCE if one.statistic == "ks" else LEAST_INDEX)\n',
        "        one.alarm = True\n",
    ),
    Guard(
        "drift: a text of the test part is not measured by its own words",
        "tests/unit/test_drift.py::test_windows_without_drift_raise_few_alarms",
        "luthier/drift.py",
        "kept, floor, own=1)\n",
        "kept, floor, own=0)\n",
    ),
    Guard(
        "drift: servers that share a database look at a window once",
        "tests/e2e/test_drift.py::test_of_servers_that_share_a_database_one_looks_at_a_window",
        "luthier/monitoring.py",
        "            return insert_or_skip(connection, db.drift_windows, row)\n",
        "            return insert_or_skip(connection, db.drift_windows, row) or True\n",
    ),
    Guard(
        "feedback: a second attempt goes on with the data set of the first",
        "tests/e2e/test_drift.py::test_an_attempt_that_dies_between_both_steps_makes_no_second_data_set",
        "luthier/worker/feedback.py",
        "    dataset = _made(job, request.dataset_id) or _make(job, version, request)\n",
        "    dataset = _make(job, version, request)\n",
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
        "            failed = self._load_ahead(targets, beside, versions)\n",
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
    Guard(
        "access: what is in no rule is denied",
        "tests/unit/test_access.py::test_what_is_in_no_rule_is_denied_to_everybody",
        "luthier/access/policy.py",
        "        if rule is None:\n            raise PermissionDenied(",
        "        if rule is None:\n            return PUBLIC\n            raise PermissionDenied(",
    ),
    Guard(
        "access: who brings no token stays out",
        "tests/e2e/test_access.py::test_nobody_comes_in_without_a_token",
        "luthier/access/gate.py",
        "        if not token:\n            raise Unauth",
        '        if not token:\n            return Principal("", 4)\n            raise Unauth',
    ),
    Guard(
        "access: a token without signature is none",
        "tests/e2e/test_access.py::test_a_token_that_is_not_to_be_believed[alg none]",
        "luthier/access/jwt_tokens.py",
        'options={"require": ["exp", "aud", "sub"]},',
        'options={"require": ["exp", "aud", "sub"], "verify_signature": header["alg"] != "none"},',
    ),
    Guard(
        "access: a token is for one audience",
        "tests/e2e/test_access.py::test_a_token_that_is_not_to_be_believed[wrong audience]",
        "luthier/access/jwt_tokens.py",
        '                options={"require": ["exp", "aud", "sub"]},\n',
        '                options={"require": ["exp", "aud", "sub"], "verify_aud": False},\n',
    ),
    Guard(
        "access: a token ends",
        "tests/e2e/test_access.py::test_a_token_that_is_not_to_be_believed[expired]",
        "luthier/access/jwt_tokens.py",
        '                options={"require": ["exp", "aud", "sub"]},\n',
        '                options={"require": ["exp", "aud", "sub"], "verify_exp": False},\n',
    ),
    Guard(
        "access: a verified token is not believed past its end",
        "tests/unit/test_access.py::test_a_verified_token_is_believed_until_it_ends_or_its_key_goes",
        "luthier/access/gate.py",
        "found is None and at < known.found.expires",
        "found is None",
    ),
    Guard(
        "access: a static token ends",
        "tests/e2e/test_access.py::test_a_static_token_that_has_ended[static, expired]",
        "luthier/access/tokens.py",
        "        if at >= principal.expires:\n            return None\n",
        "",
    ),
    Guard(
        "access: replicas hear of a revocation",
        "tests/e2e/test_access_settings.py::test_the_first_token_lets_its_holder_make_others_and_end_them_on_every_replica",
        "luthier/access/tokens.py",
        '            connection.execute(ended)\n            bump(connection, "tokens")\n',
        "            connection.execute(ended)\n",
    ),
    Guard(
        "access: a role is held to its methods",
        "tests/e2e/test_access.py::test_each_role_may_call_what_the_table_says[static]",
        "luthier/access/policy.py",
        "        if principal.role < rule.role:\n",
        "        if principal.role < min(rule.role, Role.TUNER):\n",
    ),
    Guard(
        "access: a scope is held to",
        "tests/e2e/test_access.py::test_nothing_outside_a_scope_can_be_named[JWT]",
        "luthier/access/policy.py",
        "            if not may:\n                raise",
        '            if not may and each.kind != "model":\n                raise',
    ),
    Guard(
        "access: each request of a stream is held to the scope",
        "tests/e2e/test_access.py::test_nothing_outside_a_scope_can_be_named[static]",
        "luthier/services/access.py",
        "            self._check(request, counts=counts)\n",
        "",
    ),
    Guard(
        "access: somebody else's operation is not shown",
        "tests/e2e/test_access.py::test_nothing_outside_a_scope_can_be_named[static]",
        "luthier/access/resources.py",
        "    return all(scopes[each.kind].has(each.id) for each in named)\n",
        "    return True\n",
    ),
    Guard(
        "access: lists show what is within the scope",
        "tests/e2e/test_access.py::test_lists_show_what_is_within_the_scope",
        "luthier/access/policy.py",
        "        if rule.part is None or not principal.is_restricted:\n",
        "        if True:\n",
    ),
    Guard(
        "access: a policy bounds and never widens",
        "tests/unit/test_access.py::test_an_entry_bounds_and_never_widens",
        "luthier/access/policy_file.py",
        "role = min(role, entry.role) if role else entry.role\n",
        "role = entry.role\n",
    ),
    Guard(
        "access: a change is written down before it is made",
        "tests/unit/test_access.py::test_a_call_is_written_down_before_its_work_begins",
        "luthier/access/audit.py",
        "        return self._add(principal, method, resource, STARTED, request_id, peer)\n",
        "        return str()\n",
    ),
    Guard(
        "rollouts: a caller stays with its side",
        "tests/faults/test_rollouts.py::test_a_caller_stays_with_its_side_and_more_percent_adds_callers",
        "luthier/inference/routing.py",
        "    if not key:\n",
        "    if key or not key:\n",
    ),
    Guard(
        "rollouts: a candidate that may be no better is not promoted",
        "tests/faults/test_rollouts.py::test_equal_versions_stay_undecided_under_load",
        "luthier/judging.py",
        "        if taken.lower > -rollout.rule.tolerance:\n",
        "        if taken.upper > -rollout.rule.tolerance:\n",
    ),
    Guard(
        "rollouts: a worse candidate is rolled back",
        "tests/faults/test_rollouts.py::test_feedback_decides_under_load[models/m/versions/2-ROLLED_BACK]",
        "luthier/judging.py",
        "        elif taken.upper < 0:\n",
        "        elif False:\n",
    ),
    Guard(
        "rollouts: one of several decisions counts",
        "tests/unit/test_rollout_state.py::test_fifty_hands_at_once_are_one[sqlite]",
        "luthier/rollouts.py",
        "    if row.holds is None:\n        if row.state == state",
        "    if False:\n        if row.state == state",
    ),
    Guard(
        "rollouts: a look is taken once",
        "tests/unit/test_rollout_state.py::test_a_look_is_taken_once[sqlite]",
        "luthier/rollouts.py",
        "            if row.holds is not None and row.looks == look - 1:\n",
        "            if row.holds is not None:\n",
    ),
    Guard(
        "rollouts: looks share the probability of an error",
        "tests/unit/test_comparison.py::test_equal_versions_stay_undecided",
        "luthier/comparison.py",
        "    return alpha / (look * (look + 1))\n",
        "    return alpha\n",
    ),
    Guard(
        "rollouts: a side on which all was right is not certain",
        "tests/unit/test_comparison.py::test_a_side_on_which_all_was_right_is_not_certain",
        "luthier/comparison.py",
        "        sums = np.append(sums, [worst * size, best * size])\n"
        "        counts = np.append(counts, [size, size])\n",
    ),
    Guard(
        "rollouts: callers of a candidate that fails get an answer",
        "tests/faults/test_rollouts.py::test_a_candidate_that_fails_is_rolled_back_at_once_and_callers_get_an_answer",
        "luthier/inference/routing.py",
        "            except Exception as error:\n                failed = error\n",
        "            except ArithmeticError as error:\n                failed = error\n",
    ),
    Guard(
        "rollouts: inputs are not kept where the caller says so",
        "tests/faults/test_rollouts.py::test_inputs_are_kept_where_alias_and_caller_allow[3]",
        "luthier/inference/routing.py",
        ' and wish != "predictions"',
        "",
    ),
    Guard(
        "rollouts: shadows give way to callers",
        "tests/unit/test_shadows.py",
        "luthier/inference/shadows.py",
        "        if not self._threads.waiting:\n",
        "        if True:\n",
    ),
    Guard(
        "journal: what is too much is dropped",
        "tests/unit/test_journal.py::test_a_full_queue_drops_and_counts_and_never_waits[sqlite]",
        "luthier/journal.py",
        "len(self._waiting) >= MOST_WAITING or ",
        "",
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
        copy = Path(folder) / "copy"
        [root] = [root for root in ROOTS if (root / guard.file).exists()]
        shutil.copytree(root, copy, ignore=shutil.ignore_patterns("__pycache__"))
        path = copy / guard.file
        code = path.read_text(encoding="utf-8")
        if code.count(guard.old) != 1:
            return f"cannot be run: {guard.file} no longer has the code to break"
        path.write_text(code.replace(guard.old, guard.new), encoding="utf-8")
        # In front of the one that is installed, for the test and for all that it starts.
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
