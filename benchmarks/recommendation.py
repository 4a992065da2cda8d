"""How long a recommendation among a million items takes, beside the one product that it cannot do without.

    python benchmarks/recommendation.py [--items 1000000] [--factors 64] [--seen 200] [--turns 21] [--threads 1 2]
                                        [--index] [--bundles DIR]

Exports a model of random factors around 500 tastes by the plugin's own export, as training leaves an ALS model, and
opens it in a process of its own for each number of threads. In turns it is asked for 10 items by one user, by 8 and by
32 at once, all with their seen items left out, and numpy computes `V @ u` on as many threads. Prints the medians,
those of a prediction's stages, and what opening took in seconds and memory. `--index` does the same with the
approximate index, which takes many minutes to build, and prints what it finds of the exact best 10. `--bundles` keeps
the bundles in a folder, and takes those that are there already.

Exits with 1 where one recommendation among all takes more than 1.3 times as long as `V @ u`, 32 at once bring less than
5 times the throughput of one, or a ranking is not that of a brute-force search.
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
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

SINGLE_LIMIT, BATCH_LIMIT = 1.3, 5.0
BATCHES = (1, 8, 32)
K, ASKED = 10, 256
TASTES, OWN, NORM_SPREAD = 500, 0.8, 0.6
"""Clusters of the factors' directions, how far items and users lie towards their own, and the spread of their norms,
which are log-normal: popular items have long vectors."""
USERS = 1000
REST_S = 0.5
"""Between calls: a thread of numpy's still spins a tenth of a second after a product on two, beside whoever is next."""


def factors(count: int, width: int, tastes: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Vectors around some tastes, float32 [count, width]."""
    vectors = random.standard_normal((count, width), dtype=np.float32)
    vectors += np.float32(OWN) * tastes[random.integers(0, len(tastes), count)]
    vectors *= np.exp(random.normal(0, NORM_SPREAD, (count, 1))).astype(np.float32) / width
    return vectors


def choice(scores: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """Items that a user has taken: half of them those with the highest scores, half any."""
    liked = np.argpartition(-scores, count)[: count // 2]
    others = np.setdiff1d(random.choice(len(scores), 2 * count, replace=False), liked)
    return np.concatenate([liked, random.permutation(others)[: count - len(liked)]])


def build(directory: Path, arguments: argparse.Namespace, *, is_indexed: bool) -> None:
    """Exports a bundle."""
    from scipy.sparse import csr_matrix

    from luthier_recommendation import training
    from luthier_recommendation.algorithms import Als, Settings
    from luthier_recommendation.interactions import Interactions

    random = np.random.default_rng(0)
    num_items, width = arguments.items, arguments.factors
    tastes = random.standard_normal((TASTES, width), dtype=np.float32)
    items, users = (factors(count, width, tastes, random) for count in (num_items, USERS))
    taken = np.concatenate([np.sort(choice(items @ user, arguments.seen, random)) for user in users])
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
        min_recall=0.95 if is_indexed else None,
    )
    training.export(model, directory)


def memory() -> dict[str, float]:
    """Resident megabytes of this process: its own, and of mapped files."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    kilobytes = dict(line.split(":") for line in lines if line.startswith("Rss"))
    return {name: int(kilobytes[key].split()[0]) / 1024 for name, key in (("own", "RssAnon"), ("files", "RssFile"))}


def timed(function: Callable[[], object]) -> float:
    """Milliseconds of a call, made when the threads of the last one no longer spin."""
    time.sleep(REST_S)
    started = time.perf_counter()
    function()
    return (time.perf_counter() - started) * 1e3


def measure(directory: Path, threads: int, turns: int) -> dict[str, Any]:
    """Opens a bundle and times it; imports are not counted."""
    from luthier.inference.predictor import Predictor
    from luthier.tasks.recommendation.v1 import recommendation_pb2 as pb
    from luthier_recommendation import Recommendation
    from luthier_recommendation import codec as _  # noqa: F401

    if (directory / "index.faiss").exists():
        import faiss  # noqa: F401
    random = np.random.default_rng(1)
    users = random.choice(USERS, ASKED, replace=False)
    asked = [pb.Instance(user=f"user-{user}", k=K) for user in users]
    before, started = memory(), time.perf_counter()
    predictor = Predictor(Recommendation(), directory, threads=threads)
    opened_s, opened = time.perf_counter() - started, memory()
    predictor.predict(asked[: max(BATCHES)])
    used = memory()

    item_factors = np.load(directory / "item_factors.npy")
    user_factors = np.load(directory / "user_factors.npy")[users]
    seen, starts = (np.load(directory / f"seen.{name}.npy") for name in ("indices", "indptr"))
    codec, session, names = predictor._codec, predictor._session, predictor._names
    times: dict[str, list[float]] = {}
    for turn in range(turns + 1):
        batch = [asked[(turn * max(BATCHES) + i) % ASKED] for i in range(max(BATCHES))]
        calls: dict[str, Callable[[], object]] = {"V @ u": partial(np.matmul, item_factors, user_factors[turn])}
        calls |= {f"predict {size}": partial(predictor.predict, batch[:size]) for size in BATCHES}
        inputs = codec.encode(batch[:1])
        outputs = dict(zip(names, session.run(names, inputs), strict=True))
        calls |= {
            "encode": partial(codec.encode, batch[:1]),
            "run": partial(session.run, names, inputs),
            "decode": partial(codec.decode, outputs, batch[:1]),
        }
        for name, call in calls.items():
            times.setdefault(name, []).append(timed(call))
    found = 0
    for user, vector, prediction in zip(users, user_factors, predictor.predict(asked), strict=True):
        scores = item_factors @ vector
        scores[seen[starts[user] : starts[user + 1]]] = -np.inf
        best = np.argpartition(-scores, K)[:K]
        found += len({f"item-{item:07d}" for item in best} & {scored.item for scored in prediction.items})
    return {
        "opened_s": opened_s,
        "opened_mb": {name: opened[name] - before[name] for name in opened},
        "used_mb": {name: used[name] - before[name] for name in used},
        "recall": found / K / len(asked),
        # The first turn warms up.
        "ms": {name: statistics.median(values[1:]) for name, values in times.items()},
    }


def report(name: str, threads: int, found: dict[str, Any]) -> tuple[float, float]:
    """Prints what was measured; returns the two ratios."""
    ms, (opened, used) = found["ms"], (found["opened_mb"], found["used_mb"])
    single = ms["predict 1"] / ms["V @ u"]
    batch = max(BATCHES) * ms["predict 1"] / ms[f"predict {max(BATCHES)}"]
    print(f"{name}, {threads} threads: opened in {found['opened_s']:.2f} s; memory {opened['own']:.0f} MB and")
    print(f"  {opened['files']:.0f} MB of files, after 32 at once {used['own']:.0f} MB and {used['files']:.0f} MB")
    print("  ms: " + ", ".join(f"{call} {value:.2f}" for call, value in ms.items()))
    print(f"  one in {single:.2f} of V @ u; 32 at once bring {batch:.1f} times the throughput of one")
    print(f"  {found['recall']:.4f} of the exact best {K}")
    return single, batch


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--factors", type=int, default=64)
    parser.add_argument("--seen", type=int, default=200)
    parser.add_argument("--turns", type=int, default=21)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--index", action="store_true")
    parser.add_argument("--bundles", type=Path)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.threads[0], arguments.turns)))
        return 0
    kept = True
    with tempfile.TemporaryDirectory() as folder:
        for is_indexed in (False, True) if arguments.index else (False,):
            name = "approximate" if is_indexed else "exact"
            bundle = (arguments.bundles or Path(folder)) / name
            if not bundle.exists():
                bundle.mkdir(parents=True)
                started = time.perf_counter()
                build(bundle, arguments, is_indexed=is_indexed)
                print(f"{name}: exported in {time.perf_counter() - started:.0f} s")
            print(f"{name}: {sum(file.stat().st_size for file in bundle.iterdir()) / 1e6:.0f} MB on disk", flush=True)
            for threads in arguments.threads:
                variables = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
                options = ("--measure", bundle, "--threads", str(threads), "--turns", str(arguments.turns))
                done = subprocess.run(
                    [sys.executable, __file__, *options],
                    env=os.environ | dict.fromkeys(variables, str(threads)),
                    stdout=subprocess.PIPE,
                    check=True,
                )
                found = json.loads(done.stdout)
                single, batch = report(name, threads, found)
                if not is_indexed:
                    kept &= single <= SINGLE_LIMIT and batch >= BATCH_LIMIT and found["recall"] == 1
    print(f"limits: {SINGLE_LIMIT} of V @ u, {BATCH_LIMIT:.0f} times the throughput, all of the exact best: ", end="")
    print("kept" if kept else "missed")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
