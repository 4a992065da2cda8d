"""What the arguments of a call become in its request."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.v1.model_pb2 import Quantization
from luthier_client import requests


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"int8": False, "int8_tolerance": None}, None),
        ({"int8": True, "int8_tolerance": None}, Quantization()),
        ({"int8": True, "int8_tolerance": 0.02}, Quantization(tolerance=0.02)),
        # To state a tolerance, be it none, is to ask.
        ({"int8": False, "int8_tolerance": 0.0}, Quantization(tolerance=0)),
    ],
)
def test_int8_is_asked_for(arguments: dict[str, Any], expected: Quantization | None) -> None:
    request = requests.fine_tune(
        "beer",
        task="text-classification",
        dataset="beer",
        base="",
        config=None,
        seed=0,
        parity_tolerance=None,
        **arguments,
    )
    assert request.HasField("quantization") == (expected is not None)
    if expected is not None:
        assert request.quantization == expected
        assert request.quantization.HasField("tolerance") == expected.HasField("tolerance")
