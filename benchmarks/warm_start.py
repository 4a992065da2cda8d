"""In how many iterations a recommender that starts from an earlier version reaches what one from nothing does.

    python benchmarks/warm_start.py [--interactions 1000000] [--seed 0]

Interactions are simulated: users and items have tastes, items a popularity, and a user draws items without replacement
in proportion to exp(taste + popularity). A version learns from the earlier ones. Then a tenth more comes in, of new
users and items too, and a training on all of them begins once at nothing, with the default iterations, and once at the
factors of that version, with more and more of them. nDCG at 10 is measured on items of 3,000 users that neither has
seen. It is reached where it is not below that of the start from nothing by more than the standard error of their
difference. Exits with 1 where that takes half of the iterations or more.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa

from luthier import fields
from luthier.task import Run
from luthier.tasks.recommendation.v1 import recommendation_pb2 as pb
from luthier_recommendation import Recommendation, metrics, training

DIMENSIONS, CHUNK = 12, 1000
PER_USER, SPREAD = 50, 0.6
"""Median and spread of a log-normal number of interactions."""
TEST_USERS, TEST_SHARE = 3000, 0.2
LATE_USERS, LATE_ITEMS = 0.02, 0.02
"""Shares of users and items that come with the last tenth alone."""
DEFAULTS = {"als": 15, "bpr": 100}


def simulate(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """About `count` distinct pairs of user and item, in the order in which each user comes to them."""
    random = np.random.default_rng(seed)
    num_users = round(count / (PER_USER * np.exp(SPREAD**2 / 2)))
    num_items = max(200, num_users // 5)
    users = random.normal(0, 1.3 / DIMENSIONS**0.25, (num_users, DIMENSIONS)).astype(np.float32)
    items = random.normal(0, 1.3 / DIMENSIONS**0.25, (num_items, DIMENSIONS)).astype(np.float32)
    popularity = random.normal(0, 1, num_items).astype(np.float32)
    wanted = np.clip(random.lognormal(np.log(PER_USER), SPREAD, num_users).astype(int), 5, num_items // 2)
    found = []
    for start in range(0, num_users, CHUNK):
        appeal = users[start : start + CHUNK] @ items.T + popularity
        # The largest under Gumbel noise are a draw without replacement in proportion to exp(appeal).
        ranking = np.argsort(-(appeal + random.gumbel(size=appeal.shape).astype(np.float32)), axis=1)
        found += [
            (np.full(n, start + i), random.permutation(ranking[i, :n]))
            for i, n in enumerate(wanted[start : start + CHUNK])
        ]
    pairs = np.concatenate([user for user, _ in found]), np.concatenate([item for _, item in found])
    return pairs


def parts_of(users: np.ndarray, items: np.ndarray, seed: int) -> tuple[pa.Table, pa.Table, pa.Table]:
    """The earlier interactions, all, and those that are held out."""
    random = np.random.default_rng(seed + 1)
    num_users, num_items = users.max() + 1, items.max() + 1
    tested = np.zeros(num_users, dtype=bool)
    tested[random.choice(num_users, min(TEST_USERS, num_users // 2), replace=False)] = True
    held = tested[users] & (random.random(len(users)) < TEST_SHARE)
    late = random.random(len(users))
    late[(users < LATE_USERS * num_users) | (items < LATE_ITEMS * num_items)] = 1
    # Eleven parts, of which the last comes later.
    earlier = ~held & (late < np.quantile(late[~held], 10 / 11))
    return table(users[earlier], items[earlier]), table(users[~held], items[~held]), table(users[held], items[held])


def table(users: np.ndarray, items: np.ndarray) -> pa.Table:
    """Rows of a data set."""
    return pa.table(
        {
            "user": [f"u{user}" for user in users],
            "item": [f"i{item}" for item in items],
            "weight": np.ones(len(users)),
            "time": np.zeros(len(users)),
        }
    )


def fitted(
    train: pa.Table, folder: Path, algorithm: str, iterations: int, base: Path | None = None
) -> training.Recommender:
    """A recommender by the task's own training."""
    config = pb.Config(algorithm=pb.Algorithm.Value(f"ALGORITHM_{algorithm.upper()}"), iterations=iterations)
    if base is None:
        config.factors = 32
        config.regularization = {"als": 10.0, "bpr": 0.01}[algorithm]
    fields.resolve(config)
    run = Run(parts={"train": train}, config=config, base=base, seed=0, directory=folder, warm_start=base is not None)
    return training.fine_tune(run)


def ndcgs(model: training.Recommender, test: pa.Table) -> np.ndarray:
    """nDCG at 10 of each user."""
    predictions = cast(list[pb.Prediction], training.predict(model, Recommendation().instances(test)))
    wanted = metrics.relevant_items(test).values()
    ranked = [[entry.item for entry in prediction.items] for prediction in predictions]
    return np.array([metrics.ndcg(*pair) for pair in zip(ranked, wanted, strict=True)])


def shortfall(goal: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """How far the mean is below the goal's, and the standard error of that, by users in pairs."""
    differences = goal - values
    return float(differences.mean()), float(differences.std(ddof=1) / np.sqrt(len(differences)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--interactions", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    count = round(arguments.interactions * 1.14)
    earlier, everything, test = parts_of(*simulate(count, arguments.seed), arguments.seed)
    more = everything.num_rows - earlier.num_rows
    print(f"{earlier.num_rows:,} interactions, then {more:,} more; {test.num_rows:,} held out")
    failed = False
    for algorithm, full in DEFAULTS.items():
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            training.export(fitted(earlier, folder, algorithm, full), folder)
            goal = ndcgs(fitted(everything, folder, algorithm, full), test)
            print(f"{algorithm}  from nothing  {full:>3} iterations  nDCG {goal.mean():.4f}")
            reached, iterations = False, 1
            while not reached and iterations < full / 2:
                values = ndcgs(fitted(everything, folder, algorithm, iterations, base=folder), test)
                below, error = shortfall(goal, values)
                told = f"nDCG {values.mean():.4f}, below by {below:+.4f} ± {error:.4f}"
                print(f"{algorithm}  warm {iterations:>12} iterations  {told}")
                reached = below <= error
                iterations += 0 if reached else max(1, full // 15)
            failed |= not reached
            print(
                f"{algorithm}  {f'reached by {iterations} of {full}' if reached else 'not reached'}; limit: under half"
            )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
