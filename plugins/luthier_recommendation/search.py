"""Choosing the algorithm and its settings by nDCG at 10 on held-out interactions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from luthier.task import InvalidArgument, Run
from luthier.tasks.recommendation.v1.recommendation_pb2 import Algorithm, Config, Index
from luthier_recommendation import metrics
from luthier_recommendation.algorithms import MAX_MODEL_BYTES, Als, Bm25, Bpr, Ease, Fit, Model, Popularity, Settings
from luthier_recommendation.interactions import Interactions

Array = npt.NDArray[Any]
Grid = Mapping[str, tuple[float, ...]]

STAGE = "choosing settings"
METRIC = "validation/ndcg_at_10"
FINALISTS, REDRAWS = 4, 3
"""Trials that are measured again, and on how many further draws."""
MAX_USERS = 2000
"""Users that a choice is measured on; their mean nDCG is then known to about 0.005."""
CHUNK, MAX_SCORES = 256, 2**25
"""Most users whose scores of all items are held at a time, and most scores."""
EASE_MAX_SIDE = 5000
"""AUTO tries EASE up to here: a matrix of this side is inverted in seconds."""
EASE_MAX_BYTES = 500_000_000
"""AUTO tries EASE where the served matrix is no larger."""


@dataclass(frozen=True, kw_only=True)
class Algo:
    """One algorithm of the config: how it is made, and which settings it has."""

    name: str
    model: type[Model]
    grid: Grid
    """Candidates of the settings that a config may leave at 0. The first are where the search begins."""


# Steps of four: what lies between differs by less than held-out interactions can tell, and a finer grid picks noise.
ALGORITHMS: Mapping[int, Algo] = {
    Algorithm.ALGORITHM_EASE: Algo(
        name="ease", model=Ease, grid={"regularization": (200.0, 12.5, 50.0, 800.0, 3200.0)}
    ),
    Algorithm.ALGORITHM_ALS: Algo(
        name="als",
        model=Als,
        grid={"iterations": (15,), "regularization": (10.0, 2.5, 40.0), "factors": (32, 16, 64)},
    ),
    Algorithm.ALGORITHM_BM25: Algo(name="bm25", model=Bm25, grid={"neighbors": (50, 200)}),
    Algorithm.ALGORITHM_BPR: Algo(
        name="bpr",
        model=Bpr,
        grid={"iterations": (100,), "regularization": (0.01, 0.04), "factors": (32, 64)},
    ),
    Algorithm.ALGORITHM_POPULARITY: Algo(name="popularity", model=Popularity, grid={}),
}
AUTO = (
    Algorithm.ALGORITHM_EASE,
    Algorithm.ALGORITHM_ALS,
    Algorithm.ALGORITHM_BM25,
    Algorithm.ALGORITHM_BPR,
)
OF_FACTORS = (ALGORITHMS[Algorithm.ALGORITHM_ALS], ALGORITHMS[Algorithm.ALGORITHM_BPR])
"""What AUTO tries with an approximate index."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """An algorithm with its settings."""

    algorithm: Algo
    settings: Settings
    ndcg: float = float("nan")
    """nDCG at 10 on the held-out interactions, where it was measured."""


def choose(run: Run, interactions: Interactions) -> Choice:
    """Returns the best of the algorithms that the config leaves open, with the best of the settings it leaves open.

    Settings of an algorithm are tried one after the other, each with the others at the best so far. Where the held-out
    interactions were drawn, the best few of all trials are measured again on further draws and the best mean wins: one
    draw tells neighbouring settings apart badly, and the best of many trials is often the luckiest. Where nothing is
    left open nothing is measured.
    """
    shape = interactions.all.shape
    grids = [(algorithm, _grid(algorithm, run.config, shape)) for algorithm in _candidates(run.config, shape)]
    num_trials = sum(_num_trials(grid) for _, grid in grids)
    if num_trials == 1:
        [(algorithm, grid)] = grids
        return Choice(algorithm=algorithm, settings=_first(grid))
    redraws = REDRAWS if interactions.is_drawn else 0
    search = _Search(run, total=num_trials + redraws * min(FINALISTS, num_trials))
    draw = _Draw.of(interactions, run.seed)
    trials = [trial for algorithm, grid in grids for trial in search.trials(algorithm, grid, draw)]
    finalists = sorted(trials, key=lambda trial: trial.ndcg, reverse=True)[:FINALISTS]
    for number in range(1, redraws + 1):
        draw = _Draw.of(interactions.redrawn(run.seed + number), run.seed)
        again = [search.measured(finalist.algorithm, finalist.settings, draw) for finalist in finalists]
        finalists = [
            replace(finalist, ndcg=finalist.ndcg + (other.ndcg - finalist.ndcg) / (number + 1))
            for finalist, other in zip(finalists, again, strict=True)
        ]
    return max(finalists, key=lambda finalist: finalist.ndcg)


@dataclass(frozen=True, kw_only=True)
class _Draw:
    """What a trial learns from and what it is measured on."""

    train: csr_matrix
    held: csr_matrix
    users: Array

    @classmethod
    def of(cls, interactions: Interactions, seed: int) -> _Draw:
        users = np.flatnonzero(np.diff(interactions.held.indptr))
        if len(users) > MAX_USERS:
            users = np.sort(np.random.default_rng(seed).choice(users, MAX_USERS, replace=False))
        return cls(train=interactions.rest, held=interactions.held, users=users)


class _Search:
    """Measures trials, which count on from one algorithm to the next."""

    def __init__(self, run: Run, total: int) -> None:
        self._run, self._total, self._done = run, total, 0

    def trials(self, algorithm: Algo, grid: Grid, draw: _Draw) -> list[Choice]:
        """All trials of one algorithm."""
        tried = [self.measured(algorithm, _first(grid), draw)]
        for name, candidates in grid.items():
            best = max(tried, key=lambda trial: trial.ndcg)
            tried += [self.measured(algorithm, _with(best.settings, name, value), draw) for value in candidates[1:]]
        return tried

    def measured(self, algorithm: Algo, settings: Settings, draw: _Draw) -> Choice:
        """Fits without the held-out interactions and ranks for them."""
        fit = Fit(matrix=draw.train, settings=settings, seed=self._run.seed, step=lambda _: self._report())
        ndcg = ndcg_of(algorithm.model.fit(fit), draw.train, draw.held, draw.users)
        self._done += 1
        self._report(**{METRIC: ndcg})
        return Choice(algorithm=algorithm, settings=settings, ndcg=ndcg)

    def _report(self, **values: float) -> None:
        self._run.report(self._done, self._total, stage=STAGE, examples=0, **values)


def ndcg_of(model: Model, train: csr_matrix, held: csr_matrix, users: Array) -> float:
    """Mean nDCG at 10 of rankings of the items that users have not taken in `train`, for those they took in `held`."""
    gains = []
    for chunk, ranked in ranked_for(model, train, users):
        relevant = (set(held.indices[held.indptr[user] : held.indptr[user + 1]].tolist()) for user in chunk)
        gains += [metrics.ndcg(items, wanted) for items, wanted in zip(ranked.tolist(), relevant, strict=True)]
    return float(np.mean(gains))


def ranked_for(model: Model, train: csr_matrix, users: Array) -> Iterator[tuple[Array, Array]]:
    """Yields users by the chunk with their best 10 unseen items, [chunk, 10]."""
    size = users_at_once(train.shape[1])
    for begin in range(0, len(users), size):
        chunk = users[begin : begin + size]
        profiles = train[chunk]
        scores = model.scores_of_users(chunk, profiles)
        scores[profiles.nonzero()] = -np.inf
        yield chunk, best_of(scores, metrics.CUTOFF)


def users_at_once(num_items: int) -> int:
    """How many users' scores of all items are held at a time."""
    return max(1, min(CHUNK, MAX_SCORES // num_items))


def best_of(scores: Array, k: int) -> Array:
    """Indexes of the k highest scores in each row, best first, the lower index first among equals."""
    k = min(k, scores.shape[1])
    # Only the k-th score and better are sorted.
    threshold = -np.partition(-scores, k - 1, axis=1)[:, k - 1 : k]
    return np.stack([_best_of_row(row, k, least) for row, least in zip(scores, threshold[:, 0], strict=True)])


def _best_of_row(scores: Array, k: int, least: float) -> Array:
    candidates = np.flatnonzero(scores >= least)
    return candidates[np.argsort(-scores[candidates], kind="stable")[:k]]


def _candidates(config: Config, shape: tuple[int, int]) -> list[Algo]:
    """The algorithms that the config leaves open."""
    if config.algorithm in ALGORITHMS:
        algorithm = ALGORITHMS[config.algorithm]
        if config.index == Index.INDEX_HNSW and algorithm not in OF_FACTORS:
            raise InvalidArgument({"config.index": f"{algorithm.name} has no factors to index; ALS and BPR have"})
        return [algorithm]
    if config.index == Index.INDEX_HNSW:
        return list(OF_FACTORS)
    ease_is_quick = min(shape) <= EASE_MAX_SIDE and Ease.served_bytes(*shape, Settings()) <= EASE_MAX_BYTES
    return [ALGORITHMS[id] for id in AUTO if id != Algorithm.ALGORITHM_EASE or ease_is_quick]


def _grid(algorithm: Algo, config: Config, shape: tuple[int, int]) -> Grid:
    """The candidates of each setting: the one that the config names, or those of the algorithm that can be served."""
    grid = {}
    for name, candidates in algorithm.grid.items():
        named = getattr(config, name)
        fitting = [value for value in ((named,) if named else candidates) if _fits(algorithm, shape, name, value)]
        if not fitting:
            why = f"with {shape[0]} users and {shape[1]} items the model would exceed the 2 GB that an ONNX file holds"
            raise InvalidArgument({f"config.{name if named else 'algorithm'}": why})
        grid[name] = tuple(fitting)
    return grid


def _fits(algorithm: Algo, shape: tuple[int, int], name: str, value: float) -> bool:
    return algorithm.model.served_bytes(*shape, _with(Settings(), name, value)) <= MAX_MODEL_BYTES


def _with(settings: Settings, name: str, value: float) -> Settings:
    """The settings with one of them changed."""
    changes: dict[str, Any] = {name: value}
    return replace(settings, **changes)


def _num_trials(grid: Grid) -> int:
    return 1 + sum(len(candidates) - 1 for candidates in grid.values())


def _first(grid: Grid) -> Settings:
    values: dict[str, Any] = {name: candidates[0] for name, candidates in grid.items()}
    return Settings(**values)
