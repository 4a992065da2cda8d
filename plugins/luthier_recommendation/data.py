"""Reading titles, splitting, checking and describing interactions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from luthier.distribution import spread
from luthier.task import PARTS, DataFile, DataProblem, InvalidArgument, Split

if TYPE_CHECKING:
    import pyarrow as pa

Array = npt.NDArray[Any]

TEST_SHARE = 0.25
"""Share of each user's items in the test part where a per-user split names none."""
_TOP_ITEMS = 10


def read_titles(file: DataFile) -> pa.Table:
    """Reads a file of titles into the columns `item` and `title`; both may be mapped, and a title may be empty."""
    from luthier import tabular

    columns = {"item": file.columns.get("item", "item"), "title": file.columns.get("title", "title")}
    wanted = [tabular.Column(name="item", required=True), tabular.Column(name="title")]
    return tabular.read_columns(replace(file, columns=columns), wanted)


def split_per_user(examples: pa.Table, split: Split) -> dict[str, pa.Table]:
    """Puts a share of each user's items into test, and into validation where two fractions are given.

    `split.fractions` is empty, [test], or [validation, test]. Which items they are depends on the seed and the ids
    alone. A share is rounded to the nearest number of items, halves down, so a user with one item stays in train, and
    all rows of a user with an item stay together.
    """
    validation, test = _shares(list(split.fractions))
    users, user_of_row = _coded(examples["user"])
    items, item_of_row = _coded(examples["item"])
    pairs, rows = np.unique(user_of_row * len(items) + item_of_row, return_inverse=True)
    user, item = np.divmod(pairs, max(len(items), 1))
    keys = _mix(_hash(users, split.seed)[user] + _mix(_hash(items, split.seed))[item])
    ranks, sizes = rank_within(user, keys)
    in_test = np.ceil(sizes * test - 0.5)
    in_validation = np.ceil(sizes * validation - 0.5)
    part = np.where(ranks < in_test, 2, np.where(ranks < in_test + in_validation, 1, 0))[rows]
    return {name: examples.filter(part == number) for number, name in enumerate(PARTS)}


def rank_within(groups: Array, keys: Array) -> tuple[Array, Array]:
    """For each element, its rank by key among those of its group, from 0, and the size of the group."""
    order = np.lexsort((keys, groups))
    _, starts, sizes = np.unique(groups[order], return_index=True, return_counts=True)
    ranks = np.empty(len(groups), dtype=np.int64)
    ranks[order] = np.arange(len(groups)) - np.repeat(starts, sizes)
    size_of = np.empty(len(groups), dtype=np.int64)
    size_of[order] = np.repeat(sizes, sizes)
    return ranks, size_of


def problems(parts: Mapping[str, pa.Table]) -> Iterator[tuple[bool, DataProblem]]:
    """What `Task.validate` yields."""
    import pyarrow as pa
    import pyarrow.compute as pc

    tables = [parts[name] for name in PARTS if name in parts]
    joined = pa.concat_tables([table.select(["user", "item", "weight"]) for table in tables])
    if not len(joined):
        yield True, DataProblem(message="there are no interactions")
        return
    for name in ("user", "item"):
        if empty := pc.sum(pc.equal(pc.utf8_trim_whitespace(joined[name]), "")).as_py():
            yield True, DataProblem(field=name, message="the id is empty", count=empty)
        if len(pc.unique(joined[name])) < 2:
            yield True, DataProblem(field=name, message=f"there is one {name} only; two are the least to learn from")
    positive = pc.fill_null(pc.and_(pc.greater(joined["weight"], 0), pc.is_finite(joined["weight"])), False)
    if refused := len(joined) - pc.sum(positive).as_py():
        yield True, DataProblem(field="weight", message="the weight is not a number above 0", count=refused)
    if repeated := len(joined) - len(joined.group_by(["user", "item"]).aggregate([])):
        message = "a user has the same item more than once; such rows count as one interaction with their summed weight"
        yield False, DataProblem(field="item", message=message, count=repeated)
    yield from _strangers(parts)


def describe(parts: Mapping[str, pa.Table]) -> dict[str, Any]:
    """What `Task.describe` returns: counts, density, interactions of users and of items, and the most popular items."""
    import pyarrow as pa

    joined = pa.concat_tables([parts[name].select(["user", "item"]) for name in PARTS if name in parts])
    pairs = joined.group_by(["user", "item"]).aggregate([])
    per_user = pairs.group_by("user").aggregate([([], "count_all")])["count_all"]
    per_item = pairs.group_by("item").aggregate([([], "count_all")])
    top = per_item.sort_by([("count_all", "descending"), ("item", "ascending")]).slice(0, _TOP_ITEMS).to_pylist()
    titles = titles_of(parts)
    return {
        "users": len(per_user),
        "items": len(per_item),
        "interactions": len(pairs),
        "density": len(pairs) / max(len(per_user) * len(per_item), 1),
        "interactions_per_user": spread(per_user.to_numpy()),
        "interactions_per_item": spread(per_item["count_all"].to_numpy()),
        "top_items": [
            {"item": row["item"], "title": titles.get(row["item"], ""), "users": row["count_all"]} for row in top
        ],
    }


def titles_of(parts: Mapping[str, pa.Table]) -> dict[str, str]:
    """Titles by item, empty where the data set has none."""
    if "titles" not in parts:
        return {}
    table = parts["titles"]
    return dict(zip(table["item"].to_pylist(), table["title"].to_pylist(), strict=True))


def _strangers(parts: Mapping[str, pa.Table]) -> Iterator[tuple[bool, DataProblem]]:
    """Users and items of the test part that nothing can be learnt about."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not len(parts.get("test", ())) or not len(parts.get("train", ())):
        return
    consequence = {"user": "they are given nothing and count as 0", "item": "they cannot be recommended"}
    for name, meaning in consequence.items():
        learnt = pa.concat_tables([parts[part].select([name]) for part in ("train", "validation") if part in parts])
        known, tested = pc.unique(learnt[name]), pc.unique(parts["test"][name])
        if unknown := len(tested) - pc.sum(pc.is_in(tested, value_set=known)).as_py():
            message = f"{unknown} {name}s of the test part do not occur in training; {meaning}"
            yield False, DataProblem(field=name, message=message, count=unknown)


def _shares(fractions: list[float]) -> tuple[float, float]:
    """Shares of validation and test."""
    validation, test = (0.0, *(fractions or [TEST_SHARE]))[-2:]
    if len(fractions) > 2 or not 0 < test < 1 or not 0 <= validation < 1 - test:
        why = "per-user takes the share of test, or the shares of validation and test: above 0, together below 1"
        raise InvalidArgument({"split.fractions": why})
    return validation, test


def _coded(column: pa.ChunkedArray) -> tuple[list[str], Array]:
    """The distinct ids of a column, and for each row the number of its id."""
    coded = column.combine_chunks().dictionary_encode()
    return coded.dictionary.to_pylist(), coded.indices.to_numpy().astype(np.int64)


def _hash(ids: list[str], seed: int) -> Array:
    """64 bits of BLAKE2b of each id."""
    key = str(seed).encode()
    digests = b"".join(hashlib.blake2b(id.encode(), digest_size=8, key=key).digest() for id in ids)
    return np.frombuffer(digests, dtype="<u8")


def _mix(numbers: Array) -> Array:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): spreads 64-bit numbers evenly."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(numbers ^ (numbers >> np.uint64(31)))
