"""Whoever calls: a name, a role, the models and data sets it is for, and what it may use."""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from fnmatch import fnmatchcase


class Role(enum.IntEnum):
    """What a principal may do; each may do what those before it may. The numbers are those of luthier.v1.Role."""

    NONE = 0
    VIEWER = 1
    CALLER = 2
    TUNER = 3
    ADMIN = 4

    @classmethod
    def of(cls, text: str) -> Role:
        """The role of a name in small letters; raises ValueError."""
        for role in cls:
            if str(role) == text:
                return role
        raise ValueError(f"{text!r} is no role; there are {', '.join(map(str, cls))}")

    def __str__(self) -> str:
        return self.name.lower()


PATTERN = re.compile(r"[a-z0-9_*?\[\]!-]{1,64}")
"""Ids, and patterns of ids as `fnmatch` reads them."""


class Scope:
    """The ids that a principal may name: each list of patterns must have one that fits."""

    __slots__ = ("_known", "lists")

    MOST_KNOWN = 1024

    def __init__(self, *lists: Iterable[str]) -> None:
        self.lists = tuple(kept for kept in map(frozenset, lists) if "*" not in kept)
        self._known: dict[str, bool] = {}

    @property
    def is_all(self) -> bool:
        """Whether it leaves nothing out."""
        return not self.lists

    def has(self, id: str) -> bool:
        """Whether an id is within it. No id is within one that leaves something out."""
        if not self.lists:
            return True
        known = self._known.get(id)
        if known is None:
            known = bool(id) and all(any(fnmatchcase(id, pattern) for pattern in each) for each in self.lists)
            if len(self._known) < self.MOST_KNOWN:
                self._known[id] = known
        return known

    def within(self, other: Scope) -> Scope:
        """What is in both."""
        return Scope(*self.lists, *other.lists)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Scope) and set(self.lists) == set(other.lists)

    def __hash__(self) -> int:
        return hash(frozenset(self.lists))

    def __repr__(self) -> str:
        return f"Scope({', '.join(repr(sorted(each)) for each in self.lists)})"


ALL = Scope()


@dataclass(frozen=True, slots=True)
class Limits:
    """What a principal may use; 0: as much as there is."""

    requests_per_minute: float = 0
    """Requests, those within a stream each, by a server process."""
    bytes_per_day: float = 0
    """Bytes of messages, of both ways, by a server process."""
    operations: int = 0
    """Operations that have not ended."""
    storage_bytes: int = 0
    """Bytes of uploads and data sets."""


UNLIMITED = Limits()


@dataclass(frozen=True, slots=True)
class Principal:
    """Whoever calls."""

    name: str
    """What it is known by in policies, quotas and the audit log. One that a JSON Web Token names begins with `jwt:`."""
    role: Role
    """What it may do."""
    models: Scope = ALL
    """The ids of models that it may name."""
    datasets: Scope = ALL
    """The ids of data sets that it may name."""
    limits: Limits = UNLIMITED
    """What it may use."""
    expires: float = math.inf
    """When it is no longer, in seconds since 1970."""
    is_restricted: bool = field(init=False, repr=False, compare=False)
    """Whether some models or data sets are not for it. Each call asks for it, so that it is found out once."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "is_restricted", not (self.models.is_all and self.datasets.is_all))


@dataclass(frozen=True)
class Credentials:
    """What a call brings to say who it is from."""

    metadata: Mapping[str, str] = field(repr=False)
    """Its metadata, texts alone, by keys in small letters; of several with one key the last."""
    peer: str
    """Where it comes from, as gRPC writes addresses."""
    certificate: Mapping[str, Iterable[bytes]] = field(default_factory=dict, repr=False)
    """What gRPC says of a certificate that the caller proved to have, such as `x509_common_name`."""

    @property
    def token(self) -> str:
        """What follows `Bearer ` in the metadata `authorization`; empty where there is none."""
        scheme, _, token = self.metadata.get("authorization", "").partition(" ")
        return token.strip() if scheme.lower() == "bearer" else ""


acting: ContextVar[Principal | None] = ContextVar("principal", default=None)
"""Whose call this thread is busy with; None where nobody was asked who they are."""


def actor() -> str:
    """The name of whose call this is; empty where nobody was asked."""
    principal = acting.get()
    return "" if principal is None else principal.name
