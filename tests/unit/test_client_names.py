from __future__ import annotations

import pytest

from luthier_client import names


@pytest.mark.parametrize(
    ("written", "resource"),
    [
        ("beer", "models/beer"),
        ("beer@production", "models/beer/aliases/production"),
        ("beer/3", "models/beer/versions/3"),
        ("models/beer", "models/beer"),
        ("models/beer/versions/3", "models/beer/versions/3"),
        ("models/beer@canary", "models/beer/aliases/canary"),
    ],
)
def test_models(written: str, resource: str) -> None:
    assert names.model(written) == resource
    assert names.parent(written) == "models/beer"


@pytest.mark.parametrize(
    ("written", "resource"),
    [
        ("banking", "datasets/banking"),
        ("banking/2", "datasets/banking/versions/2"),
        ("datasets/banking/versions/2", "datasets/banking/versions/2"),
    ],
)
def test_datasets(written: str, resource: str) -> None:
    assert names.dataset(written) == resource


@pytest.mark.parametrize(
    ("written", "resource"),
    [
        ("minilm-l6", "bases/minilm-l6"),
        ("bases/minilm-l6", "bases/minilm-l6"),
        ("beer/3", "models/beer/versions/3"),
        ("beer@production", "models/beer/aliases/production"),
    ],
)
def test_bases_are_of_the_catalogue_or_earlier_models(written: str, resource: str) -> None:
    assert names.base(written) == resource
