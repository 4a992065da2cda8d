"""How each algorithm turns a request into the inputs of its graph."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from luthier_recommendation.files import Files

Array = npt.NDArray[Any]

NO_USER = -1
"""The user of a request that has only a history, or an item."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What an instance asks for, ids looked up."""

    user: int
    """The known user whose profile this is without a history of its own, or `NO_USER`."""
    items: Array
    """Distinct items of the profile: the user's, the history's, or the one that others shall be similar to."""
    weights: Array
    """Their weights."""
    similar: bool = False
    """Whether similar items are asked for."""


class Queries(ABC):
    """Makes the inputs of the graph that only its algorithm has."""

    answers_similar = True
    """Whether there are similar items."""

    def __init__(self, files: Files) -> None:
        self.num_items = len(files.items)

    @abstractmethod
    def inputs(self, requests: Sequence[Request]) -> dict[str, Array]:
        """The inputs by name; see `graphs`."""

    def own_shares(self, request: Request) -> Array | None:
        """What each item of the profile adds to its own score and must not, or None where that is nothing."""
        return None


class EaseByUsers(Queries):
    """EASE where users are fewer than items: the query counts, for each user, the profile's items that he took.

    `taken` holds the users of each item, `own_shares` float32 [items] what an item would add to its own score, which
    the zero diagonal of EASE forbids.
    """

    def __init__(self, files: Files) -> None:
        super().__init__(files)
        self._num_users = len(files.users)
        self._taken = files.rows("taken")
        self._own_shares = files.array("own_shares")

    def inputs(self, requests: Sequence[Request]) -> dict[str, Array]:
        """`query` [batch, users]."""
        query = [self._taken.combined(request.items, request.weights, self._num_users) for request in requests]
        return {"query": np.asarray(query, dtype=np.float32)}

    def own_shares(self, request: Request) -> Array | None:
        """In proportion to the weights."""
        return self._own_shares[request.items] * request.weights


class EaseByItems(Queries):
    """EASE where items are no more than users: the query is the profile."""

    def inputs(self, requests: Sequence[Request]) -> dict[str, Array]:
        """`query` [batch, items]."""
        query = np.zeros((len(requests), self.num_items), dtype=np.float32)
        for row, request in zip(query, requests, strict=True):
            row[request.items] = request.weights
        return {"query": query}


class Factors(Queries):
    """The query of a known user is his factors, that of any other profile is folded in from its items' factors.

    `user_factors` and `item_factors` are float32 [users, f] and [items, f]. Similar items are those of the highest
    cosine, so their query is divided by the item's norm, whose inverse is in `inverse_norms` float32 [items].
    """

    def __init__(self, files: Files) -> None:
        super().__init__(files)
        self._user_factors = files.array("user_factors")
        self._item_factors = files.array("item_factors")
        self._inverse_norms = files.array("inverse_norms")

    def inputs(self, requests: Sequence[Request]) -> dict[str, Array]:
        """`query` [batch, f], and `is_similar` [batch, 1]: whether similar items are asked for."""
        query = np.asarray([self._query(request) for request in requests], dtype=np.float32)
        return {"query": query, "is_similar": np.array([[request.similar] for request in requests])}

    def _query(self, request: Request) -> Array:
        if request.similar:
            item = request.items[0]
            return np.asarray(self._item_factors[item] * self._inverse_norms[item])
        if request.user != NO_USER:
            return np.asarray(self._user_factors[request.user])
        if not request.items.size:
            return np.zeros(self._item_factors.shape[1])
        return self._fold_in(self._item_factors[request.items].astype(np.float64), request.weights)

    @abstractmethod
    def _fold_in(self, factors: Array, weights: Array) -> Array:
        """Factors of a user who took items of these factors [n, f] with these weights [n]."""


class Als(Factors):
    """ALS; a profile is folded in by the step of the training that solves for a user (Hu, Koren, Volinsky 2008, eq. 4).

    `gram` is float64 [f, f]: the sum over all items of the products of their factors, with the regularisation.
    """

    def __init__(self, files: Files) -> None:
        super().__init__(files)
        self._gram = files.array("gram")

    def _fold_in(self, factors: Array, weights: Array) -> Array:
        extra = (factors * (weights - 1)[:, None]).T @ factors
        return np.linalg.solve(self._gram + extra, weights @ factors)


class Bpr(Factors):
    """BPR, whose last factor is the item's bias and 1 for each user.

    BPR has no closed form for a user. A profile is folded in by `fold_in` float64 [f + 1, f], the least-squares map
    from the mean factors of the known users' items to those users' factors.
    """

    def __init__(self, files: Files) -> None:
        super().__init__(files)
        self._fold = files.array("fold_in")

    def _fold_in(self, factors: Array, weights: Array) -> Array:
        return np.append(factors.mean(axis=0) @ self._fold, 1.0)


class Neighbours(Queries):
    """BM25: the graph is given the profile itself."""

    def inputs(self, requests: Sequence[Request]) -> dict[str, Array]:
        """`history` and `history_weights` [batch, longest profile]."""
        width = max([1, *(len(request.items) for request in requests)])
        history = np.full((len(requests), width), self.num_items, dtype=np.int64)
        weights = np.zeros((len(requests), width), dtype=np.float32)
        for row, request in enumerate(requests):
            history[row, : len(request.items)] = request.items
            weights[row, : len(request.items)] = request.weights
        return {"history": history, "history_weights": weights}


class Popularity(Queries):
    """The same for everyone."""

    answers_similar = False

    def inputs(self, requests: Sequence[Request]) -> dict[str, Array]:
        """`query` [batch, 1] of ones."""
        return {"query": np.ones((len(requests), 1), dtype=np.float32)}


QUERIES: Mapping[str, type[Queries]] = {
    "ease-by-users": EaseByUsers,
    "ease-by-items": EaseByItems,
    "als": Als,
    "bpr": Bpr,
    "bm25": Neighbours,
    "popularity": Popularity,
}
"""By the name in `model.json`."""
