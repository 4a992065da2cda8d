"""Which versions are in memory: when they come, when they go, and what a call meets meanwhile.

Memory is counted here instead of measured, one size for each version; `tests/faults/test_memory.py` measures it.
"""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from luthier import plugins
from luthier.database import Database
from luthier.errors import DataLoss, FailedPrecondition, NotFound, ResourceExhausted
from luthier.inference import memory, predictor
from luthier.inference.lanes import Cores
from luthier.inference.pool import ModelPool
from luthier.inference.predictor import Predictor
from luthier.inference.threads import Threads
from luthier.registry import Registry
from luthier.store import Store
from luthier.telemetry.meters import Meters
from luthier.v1.model_pb2 import ModelVersion
from published import publish

pb = pytest.importorskip("acme_regression.v1.regression_pb2")

MB = 2**20
BASE, EACH = 100 * MB, 10 * MB
"""What the process holds by itself and for each version, as these tests have it."""
GRAPH = 4 * MB
"""The size of a graph's file, of which a load takes up to two and a half."""


class Home:
    """A database and a store with models, and pools over them."""

    def __init__(self, home: Path) -> None:
        self.database = Database(f"sqlite:///{home / 'luthier.db'}")
        self.database.migrate()
        self.store = Store(home)
        self.registry = Registry(self.database)
        self.plugins = plugins.load([EntryPoint("acme_regression", "acme_regression", plugins.GROUP)])
        self.threads = Threads(2, most=16)
        self.opened: list[str] = []
        """Folders of the versions that were opened, in order."""
        self._pools: list[ModelPool] = []

    def publish(self, model: str, value: float, size: int = GRAPH) -> ModelVersion:
        return publish(self.database, self.store, model, value, claimed_bytes=size)

    def pool(self, memory_mb: int = 0) -> ModelPool:
        pool = ModelPool(
            self.registry,
            self.store,
            self.plugins,
            Meters(),
            Cores(2, self.threads),
            device="cpu",
            most_waiting=8,
            memory_mb=memory_mb,
        )
        self._pools.append(pool)
        pool.refresh()
        return pool

    def move(self, pool: ModelPool, model: str, number: int, alias: str = "production") -> None:
        self.registry.set_alias(model, alias, number)
        pool.refresh()

    def close(self) -> None:
        for pool in self._pools:
            pool.close()
        self.threads.shutdown()
        self.database.close()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    home = Home(tmp_path)
    alive: weakref.WeakSet[Predictor] = weakref.WeakSet()
    make = Predictor.__init__

    def init(self: Predictor, task: object, directory: Path, **options: object) -> None:
        home.opened.append(directory.name)
        make(self, task, directory, **options)  # type: ignore[arg-type]
        alive.add(self)

    monkeypatch.setattr(Predictor, "__init__", init)
    monkeypatch.setattr(memory, "resident_bytes", lambda: BASE + EACH * len(alive))
    monkeypatch.setattr(memory, "anonymous_bytes", lambda: EACH * len(alive))
    yield home
    home.close()


def ask(pool: ModelPool, name: str) -> float:
    """The number that a model gives."""
    served = pool.get(name)
    [prediction] = served.predict([pb.Instance(features=[0])])
    value: float = prediction.value  # type: ignore[attr-defined]
    return value


def names(pool: ModelPool) -> list[str]:
    """The versions in memory, as people write them."""
    return [one.name.removeprefix("models/").replace("/versions", "") for one in pool.loaded()]


def while_opening(monkeypatch: pytest.MonkeyPatch, digest: str) -> tuple[threading.Event, threading.Event]:
    """Holds up the opening of a version; events that it has begun, and that it may go on."""
    begun, go_on = threading.Event(), threading.Event()
    make = Predictor.__init__

    def init(self: Predictor, task: object, directory: Path, **options: object) -> None:
        if directory.name == digest:
            begun.set()
            assert go_on.wait(10)
        make(self, task, directory, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Predictor, "__init__", init)
    return begun, go_on


# Without a budget.


def test_aliases_and_numbers_are_found(home: Home) -> None:
    home.publish("m", 1)
    home.publish("m", 2)
    pool = home.pool()
    assert names(pool) == ["m/1"]
    assert [ask(pool, name) for name in ("m", "m@production", "m/1", "m/2")] == [1, 1, 1, 2]
    assert names(pool) == ["m/1", "m/2"]
    for name in ("m@other", "m/3", "n"):
        with pytest.raises(NotFound):
            pool.get(name)


def test_a_call_is_computed_on_as_many_threads_as_were_settled(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def session_options(threads: int = 1) -> object:
        asked.append(threads)
        return made(threads)

    made = predictor.session_options
    monkeypatch.setattr(predictor, "session_options", session_options)
    pool = home.pool()
    for threads in (0, 1, 2, 64):
        publish(home.database, home.store, f"m{threads}", 1, threads=threads)
        pool.refresh()
    # Predictions have two cores here.
    assert asked == [1, 1, 2, 2]


def test_what_each_took_is_told(home: Home) -> None:
    for model in "abc":
        home.publish(model, 1)
    pool = home.pool()
    # Those of the start are loaded side by side; their files are of one size.
    assert sum(one.memory_bytes for one in pool.loaded()) == pytest.approx(3 * EACH, abs=3)
    home.publish("d", 1)
    pool.refresh()
    assert pool.loaded()[-1].memory_bytes == EACH


def test_a_version_is_warm_before_its_alias_moves(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.publish("m", 1)
    pool = home.pool()
    served_meanwhile = []
    warm_up = Predictor.warm_up

    def watched(self: Predictor) -> None:
        warm_up(self)
        served_meanwhile.append(ask(pool, "m"))

    monkeypatch.setattr(Predictor, "warm_up", watched)
    home.publish("m", 2)
    home.move(pool, "m", 2)
    assert served_meanwhile == [1]
    assert ask(pool, "m") == 2
    assert names(pool) == ["m/2"]


def test_a_version_that_cannot_be_loaded_leaves_its_alias_where_it_was(home: Home) -> None:
    home.publish("m", 1)
    pool = home.pool()
    damaged = home.store.bundle(home.publish("m", 2).digest) / "num_features"
    damaged.write_text("2")
    home.move(pool, "m", 2)
    assert ask(pool, "m") == 1
    for _ in range(3):
        with pytest.raises(DataLoss):
            pool.get("m/2")
    damaged.write_text("1")
    # Believed until somebody says otherwise: it costs the hash of all its files each time.
    with pytest.raises(DataLoss):
        pool.get("m/2")
    assert pool.load("m/2").name == "models/m/versions/2"
    pool.refresh()
    assert ask(pool, "m") == 2


def test_of_those_asked_for_by_number_the_last_four_stay(home: Home) -> None:
    for value in range(1, 8):
        home.publish("m", value)
    pool = home.pool()
    for number in (2, 3, 4, 5):
        ask(pool, f"m/{number}")
    ask(pool, "m/2")
    ask(pool, "m/6")
    assert names(pool) == ["m/1", "m/2", "m/4", "m/5", "m/6"]


def test_first_calls_share_one_load(home: Home) -> None:
    home.publish("m", 1)
    home.publish("m", 2)
    pool = home.pool()
    with ThreadPoolExecutor(8) as callers:
        assert list(callers.map(lambda _: ask(pool, "m/2"), range(8))) == [2] * 8
    assert len(home.opened) == 2


def test_a_load_holds_up_nobody_else(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.publish("m", 1)
    slow = home.publish("m", 2)
    pool = home.pool()
    begun, go_on = while_opening(monkeypatch, slow.digest)
    # More callers than there are threads at work wait for the load.
    waiting = [home.threads.submit(ask, pool, "m/2") for _ in range(4)]
    assert begun.wait(10)
    assert home.threads.submit(ask, pool, "m").result(timeout=5) == 1
    assert names(pool) == ["m/1"]
    go_on.set()
    assert [call.result(timeout=10) for call in waiting] == [2] * 4


def test_a_call_that_waited_while_its_alias_moved_gets_the_new_version(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.publish("m", 1)
    second = home.publish("m", 2)
    pool = home.pool(memory_mb=1000)
    pool.unload("m")
    pool._unloaded = frozenset()  # As if it had been dropped for want of memory a moment ago.
    begun, go_on = while_opening(monkeypatch, second.digest)
    with ThreadPoolExecutor(2) as callers:
        moving = callers.submit(home.move, pool, "m", 2)
        assert begun.wait(10)
        waiting = callers.submit(ask, pool, "m")
        time.sleep(0.1)
        go_on.set()
        moving.result(timeout=10)
        assert waiting.result(timeout=10) == 2
    assert names(pool) == ["m/2"]


# Giving memory back.


def test_a_version_in_use_is_left_to_its_calls(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    trims: list[int] = []
    home.publish("m", 1)
    home.publish("m", 2)
    pool = home.pool()
    served = pool.get("m")
    monkeypatch.setattr(memory, "trim", lambda: trims.append(memory.anonymous_bytes()))
    home.move(pool, "m", 2)
    time.sleep(0.1)
    assert served.predict([pb.Instance(features=[0])]) == [pb.Prediction(value=1)]
    # One after the load of the second.
    assert trims == [2 * EACH]
    del served
    deadline = time.monotonic() + 5
    while len(trims) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert trims == [2 * EACH, EACH]


def test_nothing_waits_for_the_collector(home: Home) -> None:
    home.publish("m", 1)
    pool = home.pool()
    ask(pool, "m")
    predictor = weakref.ref(pool.get("m").predictor)
    # A server freezes what it loaded at its start: a cycle in there would stay for good.
    gc.disable()
    try:
        pool.unload("m")
        assert predictor() is None
    finally:
        gc.enable()


def test_what_was_unloaded_stays_so_until_it_is_wanted(home: Home) -> None:
    home.publish("m", 1)
    home.publish("m", 2)
    pool = home.pool()
    pool.unload("m")
    assert names(pool) == []
    for name in ("m", "m/1"):
        with pytest.raises(FailedPrecondition, match="models/m/versions/1 was unloaded from this server"):
            pool.get(name)
    # What happens elsewhere, and to other aliases, changes nothing.
    home.publish("n", 3)
    home.move(pool, "m", 2, alias="next")
    with pytest.raises(FailedPrecondition):
        pool.get("m")
    assert ask(pool, "m@next") == 2
    assert pool.load("m").name == "models/m/versions/1"
    assert ask(pool, "m") == 1
    # A new version is served whatever was done to the one before; and back again.
    pool.unload("m")
    home.move(pool, "m", 2)
    assert ask(pool, "m") == 2
    home.move(pool, "m", 1)
    assert ask(pool, "m") == 1
    pool.unload("m/2")
    with pytest.raises(FailedPrecondition):
        pool.get("m/2")
    with pytest.raises(NotFound):
        pool.unload("m/3")


# With a budget.


def budget(count: int) -> int:
    """One that holds so many versions, and what loading one takes for a moment on top."""
    return (BASE + count * EACH) // MB + 7


def test_what_was_used_longest_ago_goes_first(home: Home) -> None:
    for value, model in enumerate("abc", 1):
        home.publish(model, value)
    pool = home.pool(budget(2))
    assert [ask(pool, model) for model in "abc"] == [1, 2, 3]
    assert names(pool) == ["b/1", "c/1"]
    ask(pool, "b")
    ask(pool, "a")
    assert names(pool) == ["a/1", "b/1"]
    ask(pool, "c")
    assert names(pool) == ["a/1", "c/1"]


def test_room_is_made_before_it_is_taken(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    for value, model in enumerate("abc", 1):
        home.publish(model, value)
    pool = home.pool(budget(2))
    held: list[int] = []
    trim = memory.trim
    monkeypatch.setattr(memory, "trim", lambda: (held.append(memory.resident_bytes()), trim()))
    for model in "abcacbabc":
        ask(pool, model)
    assert max(held) == BASE + 2 * EACH
    assert len(home.opened) > 5


def test_what_took_more_than_was_thought_pushes_out_others_or_goes(home: Home) -> None:
    home.publish("a", 1)
    home.publish("b", 2, size=1)
    pool = home.pool(budget(1))
    assert ask(pool, "a") == 1
    assert ask(pool, "b") == 2
    assert names(pool) == ["b/1"]
    pool.close()
    pool.unload("b")
    small = home.pool(BASE // MB + 5)
    with pytest.raises(ResourceExhausted, match="took 10 MB"):
        small.get("b")
    assert names(small) == []


def test_the_newest_are_loaded_at_the_start(home: Home) -> None:
    for value, model in enumerate("cab", 1):
        home.publish(model, value)
    assert names(home.pool(budget(2))) == ["a/1", "b/1"]


def test_an_idle_model_pushes_out_none_in_use(home: Home) -> None:
    home.publish("a", 1)
    home.publish("a", 2)
    pool = home.pool(budget(1))
    pool.get("a/2")
    assert names(pool) == ["a/2"]
    home.move(pool, "a", 1, alias="other")
    assert names(pool) == ["a/2"]


def test_a_swap_loads_ahead_where_there_is_room_for_both(home: Home) -> None:
    home.publish("a", 1)
    home.publish("b", 2)
    home.publish("b", 3)
    pool = home.pool(budget(2))
    ask(pool, "b")
    ask(pool, "a")
    pool.get("b/2")
    assert names(pool) == ["a/1", "b/2"]
    ask(pool, "b")
    assert names(pool) == ["b/1", "b/2"]
    home.move(pool, "b", 2)
    assert names(pool) == ["b/2"]
    home.move(pool, "b", 1)
    # Loaded beside the one that it replaces, which goes after.
    assert names(pool) == ["b/1", "b/2"]


def test_a_swap_without_room_for_both_moves_first(home: Home) -> None:
    home.publish("m", 1)
    home.publish("m", 2)
    pool = home.pool(budget(1))
    pool.get("m/2")
    assert ask(pool, "m") == 1
    assert names(pool) == ["m/1"]
    home.move(pool, "m", 2)
    assert names(pool) == []
    assert ask(pool, "m") == 2


def test_what_may_just_fit_is_tried_alone(home: Home) -> None:
    home.publish("a", 1)
    home.publish("b", 2)
    # Less than a load is thought to take for a moment.
    pool = home.pool(BASE // MB + 10)
    assert [ask(pool, model) for model in "abab"] == [1, 2, 1, 2]
    assert names(pool) == ["b/1"]


def test_what_can_have_no_room_is_refused_and_leaves_its_alias(home: Home) -> None:
    home.publish("m", 1)
    pool = home.pool(budget(1))
    home.publish("m", 2, size=50 * MB)
    home.move(pool, "m", 2)
    assert ask(pool, "m") == 1
    with pytest.raises(ResourceExhausted, match="more than its serve_memory_mb of 117"):
        pool.get("m/2")
    assert names(pool) == ["m/1"]


def test_calls_that_hold_a_version_hold_up_what_needs_its_room(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luthier.inference.residents.WAIT_S", 0.1)
    home.publish("a", 1)
    home.publish("b", 2)
    pool = home.pool(budget(1))
    ask(pool, "a")
    ask(pool, "b")
    held = pool.get("a")
    with pytest.raises(ResourceExhausted, match="calls in flight") as caught:
        pool.get("b")
    assert caught.value.retry_s > 0
    assert held.predict([pb.Instance(features=[0])]) == [pb.Prediction(value=1)]
    del held, caught
    time.sleep(1)
    assert ask(pool, "b") == 2


def test_a_budget_below_what_the_server_holds_is_refused(home: Home) -> None:
    with pytest.raises(FailedPrecondition, match="is 90, and the server holds 100 MB without any model"):
        home.pool(90)


def test_memory_that_calls_take_is_watched(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luthier.inference.pool.LOOK_S", 0.01)
    for value, model in enumerate("abc", 1):
        home.publish(model, value)
    pool = home.pool(budget(3))
    assert [ask(pool, model) for model in "abc"] == [1, 2, 3]
    resident = memory.resident_bytes
    monkeypatch.setattr(memory, "resident_bytes", lambda: resident() + EACH)
    deadline = time.monotonic() + 5
    while names(pool) != ["b/1", "c/1"]:
        assert time.monotonic() < deadline, names(pool)
        time.sleep(0.01)
    # The one that is used keeps its place, even where it alone is too much.
    monkeypatch.setattr(memory, "resident_bytes", lambda: resident() + 5 * EACH)
    time.sleep(0.2)
    assert names(pool) == ["c/1"]
