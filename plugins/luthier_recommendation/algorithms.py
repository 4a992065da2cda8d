"""The algorithms: how each learns, scores without a codec, and becomes a graph with the arrays of its codec.

Matrices of interactions are scipy CSR, float32 [users, items]; a profile is one row of such a matrix.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx
from implicit.cpu.als import AlternatingLeastSquares
from implicit.cpu.bpr import BayesianPersonalizedRanking
from implicit.nearest_neighbours import ItemItemRecommender, bm25_weight
from scipy.linalg import lapack
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits

from luthier.task import InvalidArgument
from luthier_recommendation import graphs
from luthier_recommendation.files import rows_to_arrays

Array = npt.NDArray[Any]

MAX_MODEL_BYTES = 2_000_000_000
"""An ONNX file is one protobuf message, and those end at 2 GiB."""

BM25_K1, BM25_B = 1.2, 0.2
"""Saturation as usual, and less length normalisation than the usual 0.75: that one buries popular items, and nDCG at 10
on ml-latest-small falls from 0.32 to 0.17 with it."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What an algorithm learns with; each reads the fields that concern it."""

    factors: int = 0
    regularization: float = 0.0
    iterations: int = 0
    neighbors: int = 0


@dataclass(frozen=True, kw_only=True)
class Start:
    """Factors to begin with."""

    users: Array
    items: Array


@dataclass(frozen=True, kw_only=True)
class Fit:
    """One fit of an algorithm."""

    matrix: csr_matrix
    settings: Settings
    seed: int
    start: Start | None = None
    """For ALS and BPR; without, they begin at random."""
    step: Callable[[int], None] = lambda iteration: None
    """Called after each iteration of ALS and BPR with their number so far; may raise to stop."""


class Model(ABC):
    """A fitted algorithm."""

    name: str
    """Of its queries, see `queries.QUERIES`."""

    @classmethod
    @abstractmethod
    def fit(cls, fit: Fit) -> Model:
        """Learns."""

    @classmethod
    @abstractmethod
    def served_bytes(cls, num_users: int, num_items: int, settings: Settings) -> int:
        """Size of the numbers in the graph."""

    @abstractmethod
    def scores(self, profiles: csr_matrix) -> Array:
        """Scores [n, items] of all items for profiles [n, items] of any users, from the profile alone."""

    def scores_of_users(self, users: Array, profiles: csr_matrix) -> Array:
        """Scores [n, items] for known users by their indexes [n], with the profiles that the model was fitted on."""
        return self.scores(profiles)

    def similar(self, items: Array) -> Array:
        """Scores [n, items] of how near items are to these."""
        size = len(items)
        shape = (size, self.num_items)
        return self.scores(csr_matrix((np.ones(size, np.float32), (np.arange(size), items)), shape=shape))

    @property
    @abstractmethod
    def num_items(self) -> int:
        """Items that are scored."""

    @abstractmethod
    def graph(self) -> onnx.ModelProto:
        """The graph that serves it."""

    def arrays(self) -> dict[str, Array]:
        """What its queries need; see `queries`."""
        return {}


class Ease(Model):
    """Linear autoencoder with a zero diagonal (Steck 2019): scores are x B, B = -P / diag P, P = (XᵀX + λI)⁻¹.

    With fewer users than items the same scores come from the smaller K = (XXᵀ + λI)⁻¹, for P = (I - XᵀKX) / λ by the
    identity of Woodbury: with c = diag XᵀKX, the score of item j is (x XᵀKX)ⱼ / (1 - cⱼ), less xⱼ cⱼ / (1 - cⱼ).
    """

    def __init__(self, matrix: csr_matrix, weights: Array, own_shares: Array | None) -> None:
        self._matrix = matrix
        self._weights = weights
        """By users KX / (1 - c), float32 [users, items]; by items B, [items, items]."""
        self._own_shares = own_shares
        self.name = "ease-by-items" if own_shares is None else "ease-by-users"

    @classmethod
    def fit(cls, fit: Fit) -> Ease:
        """Inverts one matrix of the smaller side."""
        if fit.matrix.shape[0] < fit.matrix.shape[1]:
            return cls._by_users(fit.matrix.astype(np.float64), fit.settings.regularization)
        return cls._by_items(fit.matrix.astype(np.float64), fit.settings.regularization)

    @classmethod
    def _by_users(cls, matrix: csr_matrix, regularization: float) -> Ease:
        gram = (matrix @ matrix.T).toarray()
        gram[np.diag_indices_from(gram)] += regularization
        weights = (matrix.T @ _inverse(gram)).T
        diagonal = np.asarray(matrix.multiply(weights).sum(axis=0)).ravel()
        weights /= 1 - diagonal
        return cls(matrix, weights.astype(np.float32), diagonal / (1 - diagonal))

    @classmethod
    def _by_items(cls, matrix: csr_matrix, regularization: float) -> Ease:
        gram = (matrix.T @ matrix).toarray()
        gram[np.diag_indices_from(gram)] += regularization
        weights = _inverse(gram)
        weights /= -np.diag(weights).copy()
        np.fill_diagonal(weights, 0)
        return cls(matrix, weights.astype(np.float32), None)

    @classmethod
    def served_bytes(cls, num_users: int, num_items: int, settings: Settings) -> int:
        """The matrix is of the smaller side by items."""
        return 4 * min(num_users, num_items) * num_items

    @property
    def num_items(self) -> int:
        """As fitted."""
        return int(self._matrix.shape[1])

    def scores(self, profiles: csr_matrix) -> Array:
        """Profile by profile as the class says."""
        if self._own_shares is None:
            return np.asarray(profiles @ self._weights)
        overlaps = (profiles @ self._matrix.T).toarray().astype(np.float32)  # Dense, for most users share some item.
        scores = overlaps @ self._weights
        taken = profiles.nonzero()
        scores[taken] -= profiles.data * self._own_shares[taken[1]]
        return np.asarray(scores)

    def graph(self) -> onnx.ModelProto:
        """One product with the weights."""
        return graphs.dense(self._weights)

    def arrays(self) -> dict[str, Array]:
        """By users, the users of each item and what an item adds to its own score."""
        if self._own_shares is None:
            return {}
        return {**rows_to_arrays("taken", self._matrix.T.tocsr()), "own_shares": self._own_shares.astype(np.float32)}


class FactorModel(Model):
    """Users and items as vectors of implicit; scores are their products, similar items have the highest cosine."""

    kind: ClassVar[str]

    def __init__(self, fitted: Any, matrix: csr_matrix) -> None:
        self.name = self.kind
        self._fitted = fitted
        self._matrix = matrix

    @classmethod
    def served_bytes(cls, num_users: int, num_items: int, settings: Settings) -> int:
        """The items' factors, with those of BPR's biases."""
        return 4 * (settings.factors + 1) * num_items

    @property
    def num_items(self) -> int:
        """As fitted."""
        return len(self._fitted.item_factors)

    def scores_of_users(self, users: Array, profiles: csr_matrix) -> Array:
        """Products of learnt factors."""
        return np.asarray(self._fitted.user_factors[users] @ self._fitted.item_factors.T)

    def similar(self, items: Array) -> Array:
        """Cosines."""
        unit = self._fitted.item_factors / self._fitted.item_norms[:, None]
        return np.asarray(unit[items] @ unit.T)

    def graph(self) -> onnx.ModelProto:
        """One product with the items' factors."""
        return graphs.factors(self._fitted.item_factors.T, self._inverse_norms)

    def graph_of_candidates(self) -> onnx.ModelProto:
        """The graph that serves it with an index."""
        return graphs.factors_of_candidates(self._fitted.item_factors.T, self._inverse_norms)

    def arrays(self) -> dict[str, Array]:
        """All factors, and the norms that make cosines."""
        return {
            "user_factors": self._fitted.user_factors,
            "item_factors": self._fitted.item_factors,
            "inverse_norms": self._inverse_norms,
        }

    @property
    def _inverse_norms(self) -> Array:
        return np.asarray(1 / self._fitted.item_norms, dtype=np.float32)


class Als(FactorModel):
    """Alternating least squares on implicit feedback (Hu, Koren, Volinsky 2008): weights are the confidences."""

    kind = "als"

    @classmethod
    def fit(cls, fit: Fit) -> Als:
        """Alternates, starting at random or at given factors."""
        with threadpool_limits(1, "blas"):  # implicit runs threads of its own
            model = AlternatingLeastSquares(
                factors=fit.settings.factors,
                regularization=fit.settings.regularization,
                iterations=fit.settings.iterations,
                random_state=fit.seed,
            )
            _begin(model, fit.start)
            model.fit(fit.matrix, show_progress=False, callback=lambda iteration, *_: fit.step(iteration + 1))
        return cls(model, fit.matrix)

    def scores(self, profiles: csr_matrix) -> Array:
        """Solves for users of these profiles."""
        factors = self._fitted.recalculate_user(np.arange(profiles.shape[0]), profiles)
        return np.asarray(factors @ self._fitted.item_factors.T)

    def arrays(self) -> dict[str, Array]:
        """Adds what solving for a user needs."""
        factors = self._fitted.item_factors.astype(np.float64)
        gram = factors.T @ factors + self._fitted.regularization * np.eye(factors.shape[1])
        return {**super().arrays(), "gram": gram}


class Bpr(FactorModel):
    """Bayesian personalised ranking (Rendle and others 2009), which takes every weight as 1."""

    kind = "bpr"

    @classmethod
    def fit(cls, fit: Fit) -> Bpr:
        """Descends along sampled pairs, starting at random or at given factors."""
        with threadpool_limits(1, "blas"):
            model = BayesianPersonalizedRanking(
                factors=fit.settings.factors,
                regularization=fit.settings.regularization,
                iterations=fit.settings.iterations,
                num_threads=1,  # Several write to shared factors in no fixed order.
                random_state=fit.seed,
            )
            _begin(model, fit.start)
            model.fit(fit.matrix, show_progress=False, callback=lambda epoch, *_: fit.step(epoch + 1))
        return cls(model, fit.matrix)

    def scores(self, profiles: csr_matrix) -> Array:
        """Folds profiles in, see `queries.Bpr`."""
        biases = np.ones((profiles.shape[0], 1))
        factors = np.hstack([self._mean_factors(profiles) @ self._fold_in(), biases])
        return np.asarray(factors @ self._fitted.item_factors.T)

    def arrays(self) -> dict[str, Array]:
        """Adds the map that folds profiles in."""
        return {**super().arrays(), "fold_in": self._fold_in()}

    def _mean_factors(self, profiles: csr_matrix) -> Array:
        sizes = np.maximum(profiles.getnnz(axis=1), 1)[:, None]
        return np.asarray((profiles != 0) @ self._fitted.item_factors.astype(np.float64) / sizes)

    def _fold_in(self) -> Array:
        """Least-squares map from the mean factors of users' items to the users' factors, [f + 1, f]."""
        means, users = self._mean_factors(self._matrix), self._fitted.user_factors[:, :-1].astype(np.float64)
        return np.asarray(np.linalg.lstsq(means, users)[0])


class Bm25(Model):
    """Sums of item-item similarities under BM25 weights, each item keeping its nearest neighbours, itself left out."""

    name = "bm25"

    def __init__(self, similarity: csr_matrix) -> None:
        self._similarity = similarity
        """Row by row the neighbours of an item, float64 [items, items]."""

    @classmethod
    def fit(cls, fit: Fit) -> Bm25:
        """Finds the neighbours."""
        weighted = bm25_weight(fit.matrix.T, BM25_K1, BM25_B).T.tocsr()
        model = ItemItemRecommender(K=fit.settings.neighbors + 1)
        model.fit(weighted, show_progress=False)
        pairs = model.similarity.tocoo()
        others = pairs.row != pairs.col
        similarity = csr_matrix((pairs.data[others], (pairs.row[others], pairs.col[others])), shape=pairs.shape)
        return cls(similarity)

    @classmethod
    def served_bytes(cls, num_users: int, num_items: int, settings: Settings) -> int:
        """An id and a weight for each neighbour."""
        return 8 * (settings.neighbors + 1) * num_items

    @property
    def num_items(self) -> int:
        """As fitted."""
        return int(self._similarity.shape[0])

    def scores(self, profiles: csr_matrix) -> Array:
        """Sums over the profile's items; minus infinity where nothing points to an item."""
        sums = (profiles @ self._similarity).toarray()
        return np.where(sums > 0, sums, -np.inf)

    def graph(self) -> onnx.ModelProto:
        """Neighbours as rows of one length."""
        lengths = np.diff(self._similarity.indptr)
        shape = (self.num_items, max(1, int(lengths.max())))
        ids, weights = np.full(shape, self.num_items), np.zeros(shape)
        filled = np.arange(shape[1]) < lengths[:, None]
        ids[filled], weights[filled] = self._similarity.indices, self._similarity.data
        return graphs.neighbours(ids, weights)


class Popularity(Model):
    """Each item's summed weights as a share of all."""

    name = "popularity"

    def __init__(self, shares: Array) -> None:
        self._shares = shares

    @classmethod
    def fit(cls, fit: Fit) -> Popularity:
        """Counts."""
        sums = np.asarray(fit.matrix.sum(axis=0), dtype=np.float64).ravel()
        return cls(sums / sums.sum())

    @classmethod
    def served_bytes(cls, num_users: int, num_items: int, settings: Settings) -> int:
        """One number an item."""
        return 4 * num_items

    @property
    def num_items(self) -> int:
        """As fitted."""
        return len(self._shares)

    def scores(self, profiles: csr_matrix) -> Array:
        """The same for all."""
        return np.tile(self._shares, (profiles.shape[0], 1))

    def graph(self) -> onnx.ModelProto:
        """One row of a matrix."""
        return graphs.dense(self._shares[None, :])


def _begin(model: Any, start: Start | None) -> None:
    """Has a model of implicit begin with given factors: it draws only those that are None."""
    if start is not None:
        model.user_factors, model.item_factors = start.users.copy(), start.items.copy()


def _inverse(matrix: Array) -> Array:
    """The inverse of a symmetric positive definite matrix, by its Cholesky factor; the matrix is overwritten."""
    factor, failed = lapack.dpotrf(matrix.T, overwrite_a=True)
    inverse, failed_too = lapack.dpotri(factor, overwrite_c=True)
    if failed or failed_too:
        raise InvalidArgument({"config.regularization": "it is too small for these data: the matrix is singular"})
    upper = np.triu(inverse)
    upper += np.triu(inverse, 1).T
    return np.asarray(upper)
