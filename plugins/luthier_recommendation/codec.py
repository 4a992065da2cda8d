"""Requests and similar-item requests to the arrays of the graph, and rankings back to items with titles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from google.protobuf.message import Message

from luthier.task import Codec, InvalidArgument
from luthier.tasks.recommendation.v1.recommendation_pb2 import Instance, Prediction, ScoredItem, SimilarItemsInstance
from luthier_recommendation import older
from luthier_recommendation.files import Files
from luthier_recommendation.index import Index
from luthier_recommendation.queries import NO_USER, QUERIES, Queries, Request

Array = npt.NDArray[Any]
Asked = Instance | SimilarItemsInstance

DEFAULT_K = 10
MAX_K = 1000
"""The most items one instance may ask for."""
_NOTHING = np.empty(0, dtype=np.int64)
_EXCLUDED = -np.inf


class RecommendationCodec(Codec):
    """Takes `Instance` and `SimilarItemsInstance`, mixed as they come."""

    max_rows = 32
    """With the items of a block of `graphs`, 32 MB of scores at a time."""

    def __init__(self, directory: Path) -> None:
        self._files = Files(directory)
        self._users, self._items = self._files.users, self._files.items
        self._queries: Queries = QUERIES[self._files.description.algorithm](self._files)
        expansion = self._files.description.expansion
        self._index = Index(directory, expansion) if expansion else None
        self._item_factors = self._files.array("item_factors") if expansion else _NOTHING

    def encode(self, instances: Sequence[Message]) -> Mapping[str, Array]:
        """Returns the inputs of `graphs`, one row for each instance."""
        asked = [_asked(instance) for instance in instances]
        violations = {f"instances[{i}].{f}": why for i, one in enumerate(asked) for f, why in self._violations(one)}
        if violations:
            raise InvalidArgument(violations)
        requests = [self._request(one) for one in asked]
        # The same for all, so that the rows of all slices have the same length.
        k = max([1, *map(self._num_wanted, asked)])
        inputs = {
            **self._queries.inputs(requests),
            "k": np.full((len(asked), 1), k, dtype=np.int64),
            **_padded([self._adjustments(one, request) for one, request in zip(asked, requests, strict=True)]),
            **self._allowed(asked),
        }
        if self._index:
            inputs |= self._candidates(asked, requests, inputs["query"], self._index)
        return older.inputs(inputs, self._files) if self._files.description.format == 1 else inputs

    def decode(self, outputs: Mapping[str, Array], instances: Sequence[Message]) -> list[Message]:
        """Returns the items of each row that are allowed, at most as many as its instance wants."""
        rows = zip(outputs["items"], outputs["scores"], map(_asked, instances), strict=True)
        return [self._prediction(items, scores, one) for items, scores, one in rows]

    def _violations(self, one: Asked) -> list[tuple[str, str]]:
        """Fields of an instance with what is wrong with them."""
        found = []
        if not 0 <= one.k <= MAX_K:
            found.append(("k", f"{one.k} is not between 0 and {MAX_K}"))
        if isinstance(one, SimilarItemsInstance):
            if not self._queries.answers_similar:
                found.append(("item", f"a {self._files.description.algorithm} model knows no similar items"))
            elif one.item not in self._items:
                found.append(("item", f"the model does not know the item {one.item!r}"))
        elif not one.user and not one.history:
            found.append(("user", "name a user or give a history"))
        elif self._is_stranger(one) and not one.allow_unknown:
            if one.history:
                found.append(("history", "the model knows none of these items"))
            else:
                found.append(("user", f"the model does not know the user {one.user!r}; give a history"))
        return found

    def _is_stranger(self, one: Instance) -> bool:
        """Whether nothing is known to recommend by."""
        return one.user not in self._users and not any(item in self._items for item in one.history)

    def _num_wanted(self, one: Asked) -> int:
        if isinstance(one, Instance) and self._is_stranger(one):
            return 0
        return one.k or DEFAULT_K

    def _request(self, one: Asked) -> Request:
        """Looks up the ids of an instance without violations."""
        mean = self._files.description.mean_weight
        if isinstance(one, SimilarItemsInstance):
            item = np.array([self._items.find(one.item)])
            return Request(user=NO_USER, items=item, weights=np.array([mean], np.float32), similar=True)
        history = self._known(one.history)
        user = self._users.find(one.user)
        if user is None:
            return Request(user=NO_USER, items=history, weights=np.full(len(history), mean, np.float32))
        items, weights = self._files.seen.of(user)
        added = np.setdiff1d(history, items, assume_unique=True) if history.size else history
        if not added.size:
            return Request(user=user, items=items, weights=weights)
        weights = np.concatenate([weights, np.full(len(added), mean, np.float32)])
        return Request(user=NO_USER, items=np.concatenate([items, added]), weights=weights)

    def _adjustments(self, one: Asked, request: Request) -> tuple[Array, Array]:
        """Items whose scores change, and by how much."""
        excluded = self._excluded(one, request)
        exclusions = np.full(len(excluded), _EXCLUDED, np.float32)
        own_shares = self._queries.own_shares(request) if isinstance(one, Instance) and one.include_seen else None
        if own_shares is None:
            return excluded, exclusions
        return np.concatenate([excluded, request.items]), np.concatenate([exclusions, -own_shares])

    def _excluded(self, one: Asked, request: Request) -> Array:
        denied = self._known(one.deny)
        if isinstance(one, Instance) and one.include_seen:
            return denied
        return np.concatenate([request.items, denied]) if denied.size else request.items

    def _candidates(
        self, asked: Sequence[Asked], requests: Sequence[Request], queries: Array, index: Index
    ) -> dict[str, Array]:
        """The items that the index finds for each row, and which rows have all items scored all the same."""
        found = [self._found(*each, index) for each in zip(asked, requests, queries, strict=True)]
        width = max([1, *(len(items) for items in found if items is not None)])
        candidates = np.full((len(asked), width), len(self._items), dtype=np.int64)
        factors = np.zeros((len(asked), width, queries.shape[1]), dtype=np.float32)
        for row, items in enumerate(found):
            if items is not None:
                candidates[row, : len(items)] = items
                factors[row, : len(items)] = self._item_factors[items]
        scans = np.array([[items is None] for items in found])
        return {"candidates": candidates, "candidate_factors": factors, "scans": scans}

    def _found(self, one: Asked, request: Request, query: Array, index: Index) -> Array | None:
        """What the index finds; None where it is not asked, or finds fewer items than are wanted."""
        wanted = self._num_wanted(one)
        if isinstance(one, SimilarItemsInstance) or one.allow:
            return None
        if not wanted:
            return _NOTHING
        found = index.search(query, self._excluded(one, request), wanted)
        return found if len(found) == wanted else None

    def _allowed(self, asked: Sequence[Asked]) -> dict[str, Array]:
        """The items of allow lists."""
        lists = [self._known(one.allow) for one in asked]
        allowed = np.full((len(asked), max([1, *map(len, lists)])), len(self._items), dtype=np.int64)
        for row, items in enumerate(lists):
            if items.size:
                allowed[row, : len(items)] = items
        return {"allowed": allowed, "is_restricted": np.array([[bool(one.allow)] for one in asked])}

    def _known(self, ids: Sequence[str]) -> Array:
        """Indexes of the distinct items among these that the model knows."""
        if not ids:
            return _NOTHING
        found = map(self._items.find, ids)
        return np.unique(np.array([index for index in found if index is not None], dtype=np.int64))

    def _prediction(self, items: Array, scores: Array, one: Asked) -> Prediction:
        wanted = self._num_wanted(one)
        best = zip(items[:wanted].tolist(), scores[:wanted].tolist(), strict=True)
        ids, titles = self._items, self._files.titles
        history = one.history if isinstance(one, Instance) else ()
        return Prediction(
            items=[
                ScoredItem(item=ids[item], score=score, title=titles[item] if titles else "")
                for item, score in best
                if score != _EXCLUDED
            ],
            unknown_items=[item for item in history if item not in self._items],
        )


def _asked(instance: Message) -> Asked:
    if not isinstance(instance, Asked):
        raise TypeError(f"{type(instance).__name__} is no instance of this task")
    return instance


def _padded(adjustments: Sequence[tuple[Array, Array]]) -> dict[str, Array]:
    """Rows of one length, filled up by adding 0 to the first item."""
    if len(adjustments) == 1 and (items := adjustments[0][0]).size:
        return {
            "adjusted": items.astype(np.int64, copy=False)[None],
            "adjustments": adjustments[0][1].astype(np.float32, copy=False)[None],
        }
    width = max([1, *(len(items) for items, _ in adjustments)])
    adjusted = np.zeros((len(adjustments), width), dtype=np.int64)
    amounts = np.zeros((len(adjustments), width), dtype=np.float32)
    for row, (items, by) in enumerate(adjustments):
        adjusted[row, : len(items)] = items
        amounts[row, : len(items)] = by
    return {"adjusted": adjusted, "adjustments": amounts}
