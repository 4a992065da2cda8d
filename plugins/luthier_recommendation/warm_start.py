"""Beginning at the factors of an earlier model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from luthier.task import InvalidArgument, Run
from luthier.tasks.recommendation.v1.recommendation_pb2 import Algorithm
from luthier_recommendation.algorithms import Settings, Start
from luthier_recommendation.files import Files
from luthier_recommendation.interactions import Interactions
from luthier_recommendation.search import ALGORITHMS, Choice

Array = npt.NDArray[Any]

_IDS = {"als": Algorithm.ALGORITHM_ALS, "bpr": Algorithm.ALGORITHM_BPR}


def begin(run: Run, interactions: Interactions) -> tuple[Choice, Start]:
    """Takes algorithm and settings from the base where the config leaves them open, and its factors for shared ids.

    Raises InvalidArgument for `base` where it is no earlier ALS or BPR model, and where the config names another
    algorithm or number of factors.
    """
    assert run.base is not None
    base = Files(run.base)
    name = base.description.algorithm
    if not run.warm_start or name not in _IDS:
        why = "a recommendation starts from an earlier ALS or BPR model, or from nothing"
        raise InvalidArgument({"base": f"it is a model of the kind {name}; {why}"})
    config, id = run.config, _IDS[name]
    if config.algorithm in ALGORITHMS and config.algorithm != id:
        raise InvalidArgument({"config.algorithm": f"the base is a model of the kind {name}; leave it at AUTO"})
    factors = int(base.description.settings["factors"])
    if config.factors not in (0, factors):
        raise InvalidArgument({"config.factors": f"the base has {factors} factors; leave it at 0"})
    settings = Settings(
        factors=factors,
        regularization=config.regularization or base.description.settings["regularization"],
        iterations=config.iterations or int(base.description.settings["iterations"]),
    )
    random = np.random.default_rng(run.seed)
    users = _carried(interactions.users, base.users, base.array("user_factors"), random)
    items = _carried(interactions.items, base.items, base.array("item_factors"), random)
    if name == "bpr":
        users[:, -1] = 1  # The factor that carries the items' biases is not learnt for users.
    return Choice(algorithm=ALGORITHMS[id], settings=settings), Start(users=users, items=items)


def _carried(ids: Sequence[str], base_ids: Sequence[str], factors: Array, random: np.random.Generator) -> Array:
    """Factors of the ids: the base's, and small random ones, as implicit draws them, for those that are new."""
    known = {id: index for index, id in enumerate(base_ids)}
    carried = random.random((len(ids), factors.shape[1]), dtype=np.float32) * 0.01
    shared = [(index, known[id]) for index, id in enumerate(ids) if id in known]
    if shared:
        new, old = np.array(shared).T
        carried[new] = factors[old]
    return carried
