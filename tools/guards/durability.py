"""What is never lost: operations, artefacts, uploads, data."""

from guard import Guard

GUARDS = [
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
]
