"""Beginning at the factors of an earlier model."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

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
    users, new_users = _carried(interactions.users, base.users, base.array("user_factors"), random)
    items, new_items = _carried(interactions.items, base.items, base.array("item_factors"), random)
    taken = interactions.all != 0
    _place(items, new_items, taken.T.tocsr()[:, ~new_users], users[~new_users])
    _place(users, new_users, taken, items)
    if name == "bpr":
        users[:, -1] = 1  # The factor that carries the items' biases is not learnt for users.
    return Choice(algorithm=ALGORITHMS[id], settings=settings), Start(users=users, items=items)


def _carried(ids: list[str], base_ids: list[str], factors: Array, random: np.random.Generator) -> tuple[Array, Array]:
    """Factors of the ids: the base's, and small random ones, as implicit draws them, for those that are new.

    Also which are new, bool [ids].
    """
    known = {id: index for index, id in enumerate(base_ids)}
    carried = random.random((len(ids), factors.shape[1]), dtype=np.float32) * 0.01
    shared = [(index, known[id]) for index, id in enumerate(ids) if id in known]
    if shared:
        here, there = np.array(shared).T
        carried[here] = factors[there]
    return carried, np.array([id not in known for id in ids])


def _place(factors: Array, is_new: Array, taken: csr_matrix, others: Array) -> None:
    """Moves new users to where those stand that take such items, and new items to where those stand that such users
    take: it fits a linear map of the others' mean factors, with an intercept, to the factors that are known.

    `factors` is [n, f], `taken` [n, m], and `others` [m, f]. Descent would take as many iterations for them as from
    nothing.
    """
    if not is_new.any() or is_new.all():
        return
    sizes = np.maximum(taken.getnnz(axis=1), 1)[:, None]
    means = np.hstack([taken @ others.astype(np.float64) / sizes, np.ones((len(factors), 1))])
    fitted = np.linalg.lstsq(means[~is_new], factors[~is_new].astype(np.float64))[0]
    factors[is_new] = means[is_new] @ fitted
