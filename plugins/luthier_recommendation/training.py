"""Fine-tuning: choose the settings, fit on all interactions, export."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import Message

from luthier.task import MODEL_FILE, Run
from luthier.tasks.recommendation.v1.recommendation_pb2 import Index
from luthier_recommendation import files, index, metrics, reference, search, warm_start
from luthier_recommendation.algorithms import FactorModel, Fit, Model, Settings
from luthier_recommendation.data import titles_of
from luthier_recommendation.interactions import Interactions


@dataclass(frozen=True, kw_only=True)
class Recommender:
    """A fitted model with what it learnt from."""

    model: Model
    settings: Settings
    interactions: Interactions
    titles: Mapping[str, str]
    min_recall: float | None = None
    """What its approximate index has to find, where it is to have one."""


RECALL_USERS = 200
"""Users on whom it is measured how widely the index has to be searched."""


def fine_tune(run: Run) -> Recommender:
    """Chooses algorithm and settings on held-out interactions, then learns from all.

    Held out is the part `validation`, or without it a share of each user's items. With a base, which is the bundle of
    an earlier ALS or BPR model, nothing is searched: its settings hold where the config names none, and users and items
    that it knows begin at its factors.
    """
    started = time.perf_counter()
    min_recall = run.config.min_recall if run.config.index == Index.INDEX_HNSW else None
    if min_recall is not None:
        index.library()  # Hours of training before it is missed help nobody.
    interactions = Interactions.of(run.parts, use_weights=run.config.use_weights, seed=run.seed)
    if run.base is None:
        choice, start = search.choose(run, interactions), None
    else:
        choice, start = warm_start.begin(run, interactions)
    num_users, num_items = interactions.all.shape
    iterations = choice.settings.iterations or 1
    fit = Fit(
        matrix=interactions.all,
        settings=choice.settings,
        seed=run.seed,
        start=start,
        step=lambda done: run.report(done, iterations, examples=done * interactions.all.nnz),
    )
    run.report(0, iterations)
    model = choice.algorithm.model.fit(fit)
    run.report(iterations, iterations, examples=iterations * interactions.all.nnz)
    run.figures |= {
        "training_s": time.perf_counter() - started,
        "users": num_users,
        "items": num_items,
        "interactions": interactions.all.nnz,
    }
    return Recommender(
        model=model,
        settings=choice.settings,
        interactions=interactions,
        titles=titles_of(run.parts),
        min_recall=min_recall,
    )


def predict(model: Recommender, instances: Sequence[Message]) -> list[Message]:
    """Predicts with the fitted model itself."""
    return reference.predict(model.model, model.interactions, model.titles, instances)


def export(model: Recommender, directory: Path) -> None:
    """Writes the graph, the files of `files`, and the index where there is to be one."""
    interactions, expansion = model.interactions, 0
    if model.min_recall is None:
        graph = model.model.graph()
    else:
        assert isinstance(model.model, FactorModel)
        graph = model.model.graph_of_candidates()
        expansion = _index(model.model, interactions, model.min_recall, directory)
    onnx.save(graph, directory / MODEL_FILE)
    description = files.Description(
        algorithm=model.model.name,
        settings={name: value for name, value in asdict(model.settings).items() if value},
        interactions=interactions.all.nnz,
        mean_weight=interactions.mean_weight,
        expansion=expansion,
    )
    files.write(
        directory,
        description,
        users=interactions.users,
        items=interactions.items,
        titles=model.titles,
        arrays={**files.rows_to_arrays("seen", interactions.all), **model.model.arrays()},
    )


def _index(model: FactorModel, interactions: Interactions, min_recall: float, directory: Path) -> int:
    """Builds the index; returns the least expansion that finds enough for some of the users, seen items left out.

    Enough is halfway from `min_recall` to all, as the users that publication is judged by are others. Where none finds
    that, it is the largest, and publication decides.
    """
    arrays = model.arrays()
    index.build(directory, arrays["item_factors"])
    random = np.random.default_rng(0)
    num_users = interactions.all.shape[0]
    users = random.choice(num_users, min(RECALL_USERS, num_users), replace=False)
    queries = [(arrays["user_factors"][user], interactions.all[user].indices) for user in users]
    exact = [index.best(arrays["item_factors"], *query, metrics.CUTOFF) for query in queries]
    for expansion in index.EXPANSIONS:
        if index.recall(index.Index(directory, expansion), queries, exact, metrics.CUTOFF) >= (1 + min_recall) / 2:
            break
    return expansion
