"""Predictions of a fitted model without codec and graph: the other side of the parity measurement.

It ranks whole rows of the algorithm's own scores, and shares no code with `codec`. Instances must be valid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from google.protobuf.message import Message
from scipy.sparse import csr_matrix

from luthier.tasks.recommendation.v1.recommendation_pb2 import Instance, Prediction, ScoredItem, SimilarItemsInstance
from luthier_recommendation.algorithms import Model
from luthier_recommendation.interactions import Interactions
from luthier_recommendation.search import best_of, users_at_once

Array = npt.NDArray[Any]

DEFAULT_K = 10


def predict(
    model: Model, interactions: Interactions, titles: Mapping[str, str], instances: Sequence[Message]
) -> list[Message]:
    """Returns one prediction for each `Instance` or `SimilarItemsInstance`."""
    reference = _Reference(model, interactions, titles)
    predictions: list[Message] = []
    size = users_at_once(len(interactions.items))
    for begin in range(0, len(instances), size):
        predictions += reference.predict(instances[begin : begin + size])
    return predictions


class _Reference:
    def __init__(self, model: Model, interactions: Interactions, titles: Mapping[str, str]) -> None:
        self._model, self._interactions, self._titles = model, interactions, titles
        self._users = {user: index for index, user in enumerate(interactions.users)}
        self._items = {item: index for index, item in enumerate(interactions.items)}

    def predict(self, instances: Sequence[Any]) -> list[Message]:
        profiles = csr_matrix(np.array([self._profile(instance) for instance in instances]))
        users = np.array([self._unchanged_user(instance) for instance in instances])
        similar = np.array([isinstance(instance, SimilarItemsInstance) for instance in instances])
        known, others = np.flatnonzero(users >= 0), np.flatnonzero((users < 0) & ~similar)
        scores = np.empty(profiles.shape)
        if known.size:
            scores[known] = self._model.scores_of_users(users[known], profiles[known])
        if others.size:
            scores[others] = self._model.scores(profiles[others])
        if similar.any():
            scores[similar] = self._model.similar(profiles[similar].indices)
        return [
            self._ranked(instance, row, profile)
            for instance, row, profile in zip(instances, scores, profiles, strict=True)
        ]

    def _profile(self, instance: Any) -> Array:
        """Weights of all items in what the instance's user took."""
        profile = np.zeros(len(self._items), dtype=np.float32)
        if isinstance(instance, SimilarItemsInstance):
            profile[self._items[instance.item]] = self._interactions.mean_weight
            return profile
        if instance.user in self._users:
            row = self._interactions.all[self._users[instance.user]]
            profile[row.indices] = row.data
        for item in instance.history:
            if item in self._items and not profile[self._items[item]]:
                profile[self._items[item]] = self._interactions.mean_weight
        return profile

    def _unchanged_user(self, instance: Any) -> int:
        """Index of a known user whose history adds nothing, or -1."""
        if isinstance(instance, SimilarItemsInstance) or instance.user not in self._users:
            return -1
        user = self._users[instance.user]
        seen = set(self._interactions.all[user].indices.tolist())
        adds = any(item in self._items and self._items[item] not in seen for item in instance.history)
        return -1 if adds else user

    def _ranked(self, instance: Instance | SimilarItemsInstance, scores: Array, profile: csr_matrix) -> Prediction:
        history, include_seen = (
            (instance.history, instance.include_seen) if isinstance(instance, Instance) else ((), False)
        )
        if not profile.nnz:
            return Prediction(unknown_items=history)
        if not include_seen:
            scores[profile.indices] = -np.inf
        if instance.allow:
            allowed = [self._items[item] for item in instance.allow if item in self._items]
            scores[np.setdiff1d(np.arange(len(scores)), allowed)] = -np.inf
        scores[[self._items[item] for item in instance.deny if item in self._items]] = -np.inf
        [best] = best_of(scores[None, :], instance.k or DEFAULT_K)
        ids = self._interactions.items
        return Prediction(
            items=[
                ScoredItem(item=ids[i], score=scores[i], title=self._titles.get(ids[i], ""))
                for i in best
                if scores[i] != -np.inf
            ],
            unknown_items=[item for item in history if item not in self._items],
        )
