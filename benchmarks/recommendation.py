"""How long a recommendation among a million items takes, beside the one product that it cannot do without.

    python benchmarks/recommendation.py [--items 1000000] [--factors 64] [--seen 200] [--turns 15] [--threads 1,2]
                                        [--index] [--bundle DIR]

Exports a model of random factors by the plugin's own export, as training leaves an ALS model, and opens it in a process
of its own for each number of threads. In turns it is asked for 10 items by one user, by 8 and by 32 at once, all with
their seen items excluded, and numpy computes `V @ u` on as many threads. Prints the medians, those of a prediction's
stages, and what opening took in seconds and memory. `--index` does the same with the approximate index, which takes
minutes to build. `--bundle` keeps the bundles in a folder and takes those that are there already.

Exits with 1 where one recommendation takes more than 1.3 times as long as `V @ u`, 32 at once bring less than 5 times
the throughput of one, or a ranking is not that of a brute-force search.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np

SINGLE_LIMIT, BATCH_LIMIT = 1.3, 5.0
BATCHES = (1, 8, 32)
K = 10
TASTES, OWN, NORM_SPREAD = 500, 0.8, 0.6
"""Clusters of the factors' directions, how far items and users lie towards their own, and the spread of their log-normal
norms: popular items have long vectors."""
USERS = 5000


def factors(count: int, width: int, tastes: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Vectors around some tastes, float32 [count, width]."""
    vectors = random.standard_normal((count, width), dtype=np.float32)
    vectors += np.float32(OWN) * tastes[random.integers(0, len(tastes), count)]
    vectors *= np.exp(random.normal(0, NORM_SPREAD, (count, 1))).astype(np.float32) / width
    return vectors


def build(directory: Path, arguments: argparse.Namespace) -> None:
    """Exports a bundle."""
    from scipy.sparse import csr_matrix

    from luthier_recommendation import training
    from luthier_recommendation.algorithms import Als, Settings
    from luthier_recommendation.interactions import Interactions

    random = np.random.default_rng(0)
    num_items, width = arguments.items, arguments.factors
    tastes = random.standard_normal((TASTES, width), dtype=np.float32)
    items, users = (factors(count, width, tastes, random) for count in (num_items, USERS))
    taken = np.concatenate([np.sort(random.choice(num_items, arguments.seen, replace=False)) for _ in range(USERS)])
    indptr = np.arange(0, len(taken) + 1, arguments.seen)
    matrix = csr_matrix((np.ones(len(taken), np.float32), taken, indptr), shape=(USERS, num_items))
    fitted = SimpleNamespace(
        user_factors=users, item_factors=items, item_norms=np.linalg.norm(items, axis=1), regularization=10.0
    )
    ids = [f"item-{index:07d}" for index in range(num_items)]
    model = training.Recommender(
        model=Als(fitted, matrix),
        settings=Settings(factors=width, regularization=10.0, iterations=15),
        interactions=Interactions([f"user-{index}" for index in range(USERS)], ids, matrix, matrix[:0], True),
        titles={id: f"The title of the item {id}" for id in ids},
    )
    training.export(model, directory)


def memory() -> dict[str, float]:
    """Resident megabytes of this process: its own, and of mapped files."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    kilobytes = dict(line.split(":") for line in lines if line.startswith("Rss"))
    return {name: int(kilobytes[key].split()[0]) / 1024 for name, key in (("own", "RssAnon"), ("files", "RssFile"))}


def timed(function: Callable[[], object]) -> float:
    """Milliseconds of a call."""
    started = time.perf_counter()
    function()
    return (time.perf_counter() - started) * 1e3


def measure(directory: Path, threads: int, turns: int) -> dict[str, object]:
    """Opens a bundle and times it."""
    import onnxruntime  # noqa: F401 # What is imported is not counted as the bundle's memory.

    from luthier.inference.predictor import Predictor
    from luthier.tasks.recommendation.v1 import recommendation_pb2 as pb
    from luthier_recommendation import Recommendation
    from luthier_recommendation import codec as _codec  # noqa: F401

    before = memory()
    started = time.perf_counter()
    predictor = Predictor(Recommendation(), directory, threads=threads)
    opened_s = time.perf_counter() - started
    opened = memory()
    random = np.random.default_rng(1)
    users = random.choice(USERS, max(BATCHES), replace=False)
    asked = [pb.Instance(user=f"user-{user}", k=K) for user in users]
    item_factors = np.load(directory / "item_factors.npy")
    user_factors = np.load(directory / "user_factors.npy")[users]
    seen, starts = (np.load(directory / f"seen.{name}.npy") for name in ("indices", "indptr"))
    times: dict[str, list[float]] = {}

    def note(name: str, function: Callable[[], object]) -> None:
        times.setdefault(name, []).append(timed(function))

    for _ in range(turns):
        note("V @ u", lambda: item_factors @ user_factors[0])
        for size in BATCHES:
            batch = asked[:size]
            note(f"predict {size}", lambda batch=batch: predictor.predict(batch))
        inputs = predictor._codec.encode(asked[:1])
        note("encode 1", lambda: predictor._codec.encode(asked[:1]))
        note("run 1", lambda inputs=inputs: predictor._session.run(None, inputs))
        outputs = dict(zip(predictor._outputs, predictor._session.run(predictor._outputs, inputs), strict=True))
        note("decode 1", lambda outputs=outputs: predictor._codec.decode(outputs, asked[:1]))
    after = memory()
    hits = 0
    for user, vector, prediction in zip(users, user_factors, predictor.predict(asked), strict=True):
        scores = item_factors @ vector
        scores[seen[starts[user] : starts[user + 1]]] = -np.inf
        best = np.argpartition(-scores, K)[:K]
        hits += len({f"item-{item:07d}" for item in best} & {scored.item for scored in prediction.items})
    return {
        "opened_s": opened_s,
        "opened_mb": {name: opened[name] - before[name] for name in opened},
        "after_mb": {name: after[name] - before[name] for name in after},
        "recall": hits / K / len(asked),
        "ms": {name: statistics.median(values) for name, values in times.items()},
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--factors", type=int, default=64)
    parser.add_argument("--seen", type=int, default=200)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--measure", type=int)
    a = parser.parse_args()
    if a.measure:
        print(json.dumps(measure(a.bundle, a.measure, 15)))
    else:
        a.bundle.mkdir()
        s = time.perf_counter()
        build(a.bundle, a)
        print("built", time.perf_counter() - s, sum(f.stat().st_size for f in a.bundle.iterdir()) / 1e6, "MB")
