"""Resource names: `datasets/{dataset}/versions/{number}` and their like."""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

from luthier.errors import InvalidArgument

ID = "[a-z0-9](?:[a-z0-9_-]{0,62})"
"""Ids that users choose; nothing in them means anything to a file system or a URL."""

_ID = re.compile(ID)
_FORMS = {
    "tasks/{task}": re.compile("tasks/([a-z][a-z0-9-]{0,62})"),
    "bases/{base}": re.compile("bases/([a-z0-9][a-z0-9._-]{0,62})"),
    "uploads/{upload}": re.compile("uploads/([0-9a-f]{32})"),
    "operations/{operation}": re.compile("operations/([0-9a-f]{32})"),
    "evaluations/{evaluation}": re.compile("evaluations/([0-9a-f]{32})"),
    "tokens/{token}": re.compile("tokens/([0-9a-f]{32})"),
    "rollouts/{rollout}": re.compile("rollouts/([0-9a-f]{32})"),
    "datasets/{dataset}": re.compile(f"datasets/({ID})"),
    "datasets/{dataset}/versions/{number}": re.compile(f"datasets/({ID})/versions/([1-9][0-9]{{0,8}})"),
    "models/{model}": re.compile(f"models/({ID})"),
    "models/{model}/versions/{number}": re.compile(f"models/({ID})/versions/([1-9][0-9]{{0,8}})"),
    "models/{model}/aliases/{alias}": re.compile(f"models/({ID})/aliases/({ID})"),
}
_MODEL = re.compile(f"({ID})(?:@({ID})|/([1-9][0-9]{{0,8}}))?")

PRODUCTION = "production"
"""The alias that a model's first version takes, and that a model's bare name stands for."""


class Versioned(NamedTuple):
    """A version of a data set or model, or where `number` is 0 its newest."""

    id: str
    number: int


class ModelReference(NamedTuple):
    """What a prediction names: a version where `number` is set, else an alias."""

    model: str
    alias: str
    number: int


def parse(form: str, name: str, field: str = "name") -> tuple[str, ...]:
    """The ids in a resource name of one of the known forms; raises InvalidArgument naming the field."""
    if match := _FORMS[form].fullmatch(name):
        return match.groups()
    raise InvalidArgument({field: f"{name!r} is not of the form {form}"})


def check_id(id: str, field: str) -> str:
    """Returns an id that a user chose, or raises InvalidArgument."""
    if _ID.fullmatch(id):
        return id
    raise InvalidArgument(
        {field: f"{id!r} is no id: small letters, digits, `-` and `_`, a letter or digit first, at most 63"}
    )


def check_task(task: str) -> str:
    """Returns the id of a task that a listing is to be of, or none; raises InvalidArgument."""
    if not task or _FORMS["tasks/{task}"].fullmatch(f"tasks/{task}"):
        return task
    raise InvalidArgument({"task": f"{task!r} is no id of a task"})


def parse_versioned(collection: str, name: str, field: str) -> Versioned:
    """Reads `{collection}/{id}` or `{collection}/{id}/versions/{number}`."""
    if match := re.fullmatch(f"{collection}/({ID})(?:/versions/([1-9][0-9]{{0,8}}))?", name):
        return Versioned(match[1], int(match[2] or 0))
    raise InvalidArgument(
        {field: f"{name!r} is neither of the form {collection}/ID nor of the form {collection}/ID/versions/NUMBER"}
    )


@functools.lru_cache(maxsize=1024)
def parse_model(name: str, field: str = "model") -> ModelReference:
    """Reads the name in a prediction: `beer@production`, `beer/3` or `beer`."""
    if match := _MODEL.fullmatch(name):
        return ModelReference(match[1], match[2] or PRODUCTION, int(match[3] or 0))
    raise InvalidArgument({field: f"{name!r} is not a model's name such as beer, beer@production or beer/3"})


def dataset_version(dataset: str, number: int) -> str:
    """`datasets/{dataset}/versions/{number}`."""
    return f"datasets/{dataset}/versions/{number}"


def model_version(model: str, number: int) -> str:
    """`models/{model}/versions/{number}`."""
    return f"models/{model}/versions/{number}"
