"""The threads that predictions run in: as many at work as there are cores, however many wait."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import SimpleQueue
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")
_Task = tuple[Future[Any], Callable[..., Any], tuple[Any, ...], dict[str, Any]]


class Threads(Executor):
    """`count` threads, and one more for each that is `aside`, and where more calls wait than may wait unread.

    More threads than cores at work only wait for the interpreter: with 8 instead of 2 a bare gRPC server answered a
    fifth to a third fewer calls. A call that waits for its turn has to hold its thread, since gRPC's answers come from
    the function that was called; so another thread goes on in its place.
    """

    def __init__(self, count: int, most: int) -> None:
        """There are never more than `most` threads in all."""
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()
        self._most = most
        self.unread = 0
        """So many calls may wait without a thread while all compute. Those beyond them are taken up, to be put in line
        or refused by the model that they are for."""
        self.is_busy: Callable[[], bool] = lambda: False
        """Whether all threads may be computing."""
        self._lock = threading.Lock()
        self._surplus = 0
        """Threads at work beyond `count`; so many are to park once they are done."""
        self._parked: list[threading.Lock] = []
        self._threads: list[threading.Thread] = []
        self._own: set[int] = set()
        self._closed = False
        for _ in range(count):
            self._start()

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Runs a function in one of the threads."""
        if self._closed:
            raise RuntimeError("the threads are about to end")
        future: Future[T] = Future()
        self._tasks.put((future, fn, args, kwargs))
        if self._tasks.qsize() > self.unread and self.is_busy():
            self.relieve()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends the threads after what was submitted before."""
        with self._lock:
            self._closed = True
            self._surplus = 0
            for parked in self._parked:
                parked.release()
            self._parked.clear()
            threads = list(self._threads)
        for _ in threads:
            self._tasks.put(None)
        if wait:
            for thread in threads:
                thread.join()

    @property
    def waiting(self) -> int:
        """Calls that no thread has taken yet."""
        return self._tasks.qsize()

    def aside(self) -> _Aside:
        """A context in which the calling thread counts as not at work; to no effect for a thread of others."""
        return _Aside(self)

    def relieve(self) -> None:
        """Has one more thread take up a call, where one waits; the next to be done parks for it."""
        if not self._tasks.qsize():
            return
        with self._lock:
            if self._go_on():
                self._surplus += 1

    def _leave(self) -> bool:
        """Has another thread work in this one's place; False where no more may be."""
        with self._lock:
            if self._surplus:
                self._surplus -= 1
                return True
            return self._go_on()

    def _go_on(self) -> bool:
        """Puts one more thread to work; False where no more may be. With the lock held."""
        if self._parked:
            self._parked.pop().release()
        elif len(self._threads) < self._most:
            self._start()
        else:
            return False
        return True

    def _return(self) -> None:
        with self._lock:
            self._surplus += 1

    def _start(self) -> None:
        name = f"prediction_{len(self._threads)}"
        thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _work(self) -> None:
        self._own.add(threading.get_ident())
        while (task := self._tasks.get()) is not None:
            future, function, args, kwargs = task
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function(*args, **kwargs))
                except BaseException as error:
                    future.set_exception(error)
            # What the call held is not to live until the next one.
            del task, future, function, args, kwargs
            if self._surplus:
                self._park()

    def _park(self) -> None:
        with self._lock:
            if not self._surplus or self._closed:
                return
            self._surplus -= 1
            parked = threading.Lock()
            parked.acquire()
            self._parked.append(parked)
        parked.acquire()

    def is_own(self) -> bool:
        """Whether the calling thread is one of these."""
        return threading.get_ident() in self._own


class _Aside:
    """See `Threads.aside`."""

    def __init__(self, threads: Threads) -> None:
        self._threads = threads
        self._left = False

    def __enter__(self) -> None:
        self._left = self._threads.is_own() and self._threads._leave()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._left:
            self._threads._return()
