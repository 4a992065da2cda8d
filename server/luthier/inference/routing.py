"""Which version answers a call, and what is kept of the answer."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from hashlib import blake2b
from threading import Event
from time import perf_counter
from typing import Generic, NamedTuple, TypeVar

from google.protobuf.message import Message

from luthier import names
from luthier.errors import (
    Cancelled,
    DataLoss,
    DeadlineExceeded,
    InvalidArgument,
    LuthierError,
    ResourceExhausted,
    Unavailable,
)
from luthier.inference.lanes import ANYBODY, Caller
from luthier.inference.pool import ModelPool
from luthier.inference.served import Served
from luthier.inference.shadows import Shadows
from luthier.journal import Entry, Journal, new_id
from luthier.logs import unexpected
from luthier.rollouts import Key, Policy, Split
from luthier.telemetry.calls import current
from luthier.v1.model_pb2 import Recording

R = TypeVar("R")
_WISHES = ("", "off", "predictions")
Messages = tuple[Sequence[Message], Sequence[Message]]
"""Instances and their predictions."""

KEY = "luthier-key"
"""Metadata in which a caller may say whom a call is for; one key always meets the same side of a rollout."""
RECORD = "luthier-record"
"""Metadata in which a caller may ask that nothing is kept of a call (`off`), or not its inputs (`predictions`)."""


class Answer(NamedTuple, Generic[R]):
    """What a call gets."""

    served: Served
    """The version that answered."""
    result: R
    id: str
    """Names the call's predictions."""


class Router:
    """Answers calls by name: by the alias's version, or by a rollout's candidate."""

    def __init__(self, pool: ModelPool, journal: Journal, shadows: Shadows) -> None:
        self._pool = pool
        self._journal = journal
        self._shadows = shadows
        self.broken: dict[str, str] = {}
        """By rollout, why its candidate is to be rolled back at once. It gets no calls here any more."""
        self.broke = Event()
        """Set when one broke."""

    def answer(
        self,
        name: str,
        caller: Caller,
        run: Callable[[Served, Caller], R],
        messages: Callable[[R], Messages | None],
    ) -> Answer[R]:
        """Answers a call by `run`, which may be called for several versions; `messages` gives what may be kept.

        Raises what `ModelPool.get` and `run` raise.
        """
        served, policy = self._pool.route(name)
        if policy is None:
            return Answer(served, run(served, caller), new_id())
        id = new_id()
        call = current.get()
        said = call.metadata() if call is not None else {}
        if (wish := said.get(RECORD, "")) not in _WISHES:
            raise InvalidArgument({RECORD: f"{wish!r} is neither off nor predictions"})
        key, split = said.get(KEY, ""), policy.split
        if split is None:
            result = run(served, caller)
            self._keep(id, policy, served, messages(result), said, "")
            return Answer(served, result, id)
        served, result = self._split(served, split, key, caller, run)
        kept = policy, said, _pseudonym(split, key)
        self._keep(id, policy, served, messages(result), said, kept[2])
        for shadow in split.shadows:
            self._shadows.offer(lambda shadow=shadow: self._shadow(id, shadow, kept, run, messages))  # type: ignore[misc]
        return Answer(served, result, id)

    def _split(
        self, stable: Served, split: Split, key: str, caller: Caller, run: Callable[[Served, Caller], R]
    ) -> tuple[Served, R]:
        """Answers by one side, by the stable one where the candidate fails, and counts."""
        failed, is_broken = None, False
        version = names.model_version(*split.candidate) if split.candidate else ""
        if split.share and split.rollout not in self.broken and _place(split, key) < split.share:
            began = perf_counter()
            candidate = None
            try:
                candidate = self._pool.get(_name(split.candidate))  # type: ignore[arg-type]
                result = run(candidate, caller)
            except (DeadlineExceeded, Cancelled) as error:
                late = isinstance(error, DeadlineExceeded)
                self._journal.count(split.rollout, version, perf_counter() - began, failed=late)
                raise
            except Exception as error:
                failed = error
                passes = LuthierError if candidate else (Unavailable, ResourceExhausted)
                is_broken = isinstance(error, DataLoss) or not isinstance(error, passes)
            else:
                self._journal.count(split.rollout, version, perf_counter() - began, failed=False)
                return candidate, result
        asked = perf_counter()
        try:
            result = run(stable, caller)
        except Exception as error:
            # Both refuse what the caller sent: that is nobody's failure but the caller's.
            if not isinstance(error, (InvalidArgument, Cancelled)):
                self._journal.count(split.rollout, stable.name, perf_counter() - asked, failed=True)
            raise
        if failed is not None:
            self._journal.count(split.rollout, version, asked - began, failed=True)
            if is_broken:
                self._break(split, version, failed)
        self._journal.count(split.rollout, stable.name, perf_counter() - asked, failed=False)
        return stable, result

    def _break(self, split: Split, version: str, error: Exception) -> None:
        status = error.status() if isinstance(error, LuthierError) else unexpected(error, version)
        self.broken[split.rollout] = f"{version} failed: {status.message}"
        self.broke.set()

    def _shadow(
        self,
        id: str,
        shadow: Key,
        kept: tuple[Policy, dict[str, str], str],
        run: Callable[[Served, Caller], R],
        messages: Callable[[R], Messages | None],
    ) -> None:
        policy, said, caller = kept
        assert policy.split is not None
        served = self._pool.get(_name(shadow))
        began = perf_counter()
        try:
            result = run(served, ANYBODY)
        except Exception:
            self._journal.count(policy.split.rollout, served.name, perf_counter() - began, failed=True)
            raise
        self._journal.count(policy.split.rollout, served.name, perf_counter() - began, failed=False)
        self._keep(id, policy, served, messages(result), said, caller)

    def _keep(
        self,
        id: str,
        policy: Policy,
        served: Served,
        messages: Messages | None,
        said: dict[str, str],
        caller: str,
    ) -> None:
        """Has the journal write what the alias and the caller allow."""
        recording, wish = policy.recording, said.get(RECORD, "")
        if messages is None or recording.mode <= Recording.MODE_OFF or wish == "off":
            return
        instances, predictions = messages
        # Feedback is scored by the task's first method.
        if not isinstance(instances[0], served.instances.instance):
            return
        # By the id, so that of a call all or nothing is kept: the answer and what shadows said.
        if recording.HasField("sample") and int(id[-8:], 16) >= recording.sample * 2**32:
            return
        inputs = instances if recording.mode == Recording.MODE_INPUTS and wish != "predictions" else ()
        rollout = policy.split.rollout if policy.split else ""
        self._journal.offer(Entry(id, served.name, policy.alias, inputs, predictions, rollout, caller))


def _place(split: Split, key: str) -> float:
    """Where a call stands among all, from 0 to below 1. The candidate answers those below its share, so that a larger
    share only adds callers."""
    if not key:
        return random.random()
    return int.from_bytes(blake2b(f"{split.rollout}/{key}".encode(), digest_size=8).digest()) / 2**64


def _pseudonym(split: Split, key: str) -> str:
    """Tells a caller's predictions from others' within a rollout, without saying who it is."""
    return blake2b(f"{key}/{split.rollout}".encode(), digest_size=8).hexdigest() if key else ""


def _name(key: Key) -> str:
    return f"{key[0]}/{key[1]}"
