"""Fine-tuning: choose the settings, fit on all interactions, export."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx
from google.protobuf.message import Message

from luthier.task import MODEL_FILE, Run
from luthier_recommendation import files, reference, search, warm_start
from luthier_recommendation.algorithms import Fit, Model, Settings
from luthier_recommendation.data import titles_of
from luthier_recommendation.interactions import Interactions


@dataclass(frozen=True, kw_only=True)
class Recommender:
    """A fitted model with what it learnt from."""

    model: Model
    settings: Settings
    interactions: Interactions
    titles: Mapping[str, str]


def fine_tune(run: Run) -> Recommender:
    """Chooses algorithm and settings on held-out interactions, then learns from all.

    Held out is the part `validation`, or without it a share of each user's items. With a base, which is the bundle of
    an earlier ALS or BPR model, nothing is searched: its settings hold where the config names none, and users and items
    that it knows begin at its factors.
    """
    started = time.perf_counter()
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
    return Recommender(model=model, settings=choice.settings, interactions=interactions, titles=titles_of(run.parts))


def predict(model: Recommender, instances: Sequence[Message]) -> list[Message]:
    """Predicts with the fitted model itself."""
    return reference.predict(model.model, model.interactions, model.titles, instances)


def export(model: Recommender, directory: Path) -> None:
    """Writes the graph, and the files of `files`."""
    interactions = model.interactions
    onnx.save(model.model.graph(), directory / MODEL_FILE)
    description = files.Description(
        algorithm=model.model.name,
        settings={name: value for name, value in asdict(model.settings).items() if value},
        interactions=interactions.all.nnz,
        mean_weight=interactions.mean_weight,
    )
    files.write(
        directory,
        description,
        users=interactions.users,
        items=interactions.items,
        titles=model.titles,
        arrays={**files.rows_to_arrays("seen", interactions.all), **model.model.arrays()},
    )
