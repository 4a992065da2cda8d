"""Publishes and rollbacks under load: no call is lost, and each is answered by the version that it names."""

from __future__ import annotations

import math
import random
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from luthier.database import Database
from luthier.store import Store
from luthier.v1 import model_pb2, model_pb2_grpc
from published import publish
from support import serving

pb = pytest.importorskip("acme_regression.v1.regression_pb2")
pb_grpc = pytest.importorskip("acme_regression.v1.regression_pb2_grpc")

SWAPS = 50
PUBLISHES = 10
"""Of the swaps; the others go back to a version that was served before."""
EVERY_S = 0.05
ROWS = 1000
"""So many that a call is often under way when its version is replaced."""


@dataclass
class Answer:
    sent: float
    received: float
    version: str
    values: set[float]


@dataclass
class Swap:
    number: int
    asked: float
    """When the alias was told to move."""
    seen: float = math.inf
    """When a call was answered by the new version."""


class Load:
    """A call every EVERY_S seconds, whatever became of those before."""

    def __init__(self, estimate: Any) -> None:
        self.answers: list[Answer] = []
        self.errors: list[grpc.RpcError] = []
        self._estimate = estimate
        self._end = threading.Event()
        self._pending: list[grpc.Future] = []
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        for call in self._pending:
            call.exception(timeout=30)
        deadline = time.monotonic() + 10
        # The callbacks come after.
        while len(self.answers) + len(self.errors) < len(self._pending) and time.monotonic() < deadline:
            time.sleep(0.01)

    def _run(self) -> None:
        request = pb.EstimateRequest(model="m", instances=[pb.Instance(features=[0])] * ROWS)
        due = time.monotonic()
        while not self._end.wait(max(0.0, due - time.monotonic())):
            due += EVERY_S
            sent = time.monotonic()
            call = self._estimate.future(request, timeout=30)
            self._pending.append(call)
            call.add_done_callback(lambda call, sent=sent: self._done(call, sent))

    def _done(self, call: Any, sent: float) -> None:
        received = time.monotonic()
        if error := call.exception():
            self.errors.append(error)
        else:
            values = {prediction.value for prediction in call.result().predictions}
            self.answers.append(Answer(sent, received, call.result().model_version, values))


def test_swaps_under_load_lose_nothing_and_mix_nothing(tmp_path: Path, database_url: str) -> None:
    database = Database(database_url)
    database.migrate()
    store = Store(tmp_path)
    publish(database, store, "m", 1, megabytes=8)
    draw = random.Random(0)
    publishing = {*draw.sample(range(SWAPS), PUBLISHES)}
    with serving(tmp_path, "--database-url", database_url) as server:
        estimate = server.stub(pb_grpc.RegressionServiceStub).Estimate
        set_alias = server.stub(model_pb2_grpc.ModelServiceStub).SetAlias
        newest, swaps = 1, [Swap(1, -math.inf, -math.inf)]
        one = pb.EstimateRequest(model="m", instances=[pb.Instance(features=[0])])
        with Load(estimate) as load:
            for turn in range(SWAPS):
                if turn in publishing or newest == 1:
                    newest += 1
                    publish(database, store, "m", newest, megabytes=8)
                    number = newest
                else:
                    number = draw.choice([n for n in range(1, newest + 1) if n != swaps[-1].number])
                version = f"models/m/versions/{number}"
                swaps.append(Swap(number, time.monotonic()))
                set_alias(model_pb2.SetAliasRequest(name="models/m/aliases/production", model_version=version))
                deadline = time.monotonic() + 10
                while estimate(one).model_version != version:
                    assert time.monotonic() < deadline, f"the alias does not move to {version}"
                    time.sleep(0.01)
                swaps[-1].seen = time.monotonic()
                time.sleep(0.15)
    database.close()

    assert not load.errors, load.errors[:3]
    assert len(load.answers) >= 20 * 0.15 * SWAPS
    certain = 0
    for answer in load.answers:
        number = int(answer.version.rpartition("/")[2])
        assert answer.values == {number}
        ends = [after.seen for after in swaps[1:]] + [math.inf]
        named = {
            swap.number
            for swap, end in zip(swaps, ends, strict=True)
            if swap.asked <= answer.received and end >= answer.sent
        }
        assert number in named, f"{answer.version} answered a call while the alias named {named}"
        certain += len(named) == 1
    assert certain >= SWAPS, "too few calls fell between two swaps to tell anything"
