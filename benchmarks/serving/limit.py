"""What the machine could do at most: onnxruntime in this process, on all cores and with nothing around it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from client import Load
from peers import answers

from luthier.inference.predictor import session_options
from luthier.task import MODEL_FILE


class Limit:
    """The graph of a bundle, given the arrays that a server would give it."""

    def __init__(self, bundle: Path, arrays: Sequence[Mapping[str, np.ndarray]]) -> None:
        options = session_options(answers.threads(bundle))
        self._session = ort.InferenceSession(bundle / MODEL_FILE, options, providers=["CPUExecutionProvider"])
        self._arrays = arrays

    def drive(self, in_flight: int, seconds: float) -> Load:
        """Computes on so many threads, but no more than there are cores."""
        latencies: list[float] = []
        cpu, started = time.process_time(), time.perf_counter()

        def work(offset: int) -> None:
            mine: list[float] = []
            ended = started
            while ended - started < seconds:
                began = time.perf_counter()
                self._session.run(None, self._arrays[(offset + len(mine)) % len(self._arrays)])
                ended = time.perf_counter()
                mine.append(ended - began)
            latencies.extend(mine)

        count = min(in_flight, len(os.sched_getaffinity(0)))
        threads = [threading.Thread(target=work, args=(i * 7,)) for i in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        p50, p99 = np.percentile(latencies, [50, 99]) * 1000
        cpu_s = time.process_time() - cpu
        return Load(len(latencies), time.perf_counter() - started, float(p50), float(p99), cpu_s)


def options() -> dict[str, str]:
    """The options of every session; raises SystemExit where those of the peers are not Luthier's."""
    ours = session_options()
    found = {"inter_op_num_threads": str(ours.inter_op_num_threads)}
    found |= {name: ours.get_session_config_entry(name) for name in answers.ENTRIES}
    theirs = {"inter_op_num_threads": str(answers.BETWEEN)} | answers.ENTRIES
    if found != theirs:
        raise SystemExit(
            f"Luthier's session options {found} are not those of the peers, {theirs}: see peers/answers.py"
        )
    return found
