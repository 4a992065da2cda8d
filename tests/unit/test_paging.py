import base64
import json

import pytest

from luthier import paging
from luthier.errors import InvalidArgument


@pytest.mark.parametrize(("key", "kinds"), [(["a-1"], (str,)), ([7], (int,)), ([1.5, "a"], (float, str))])
def test_a_token_gives_its_key_back(key: list[object], kinds: tuple[type, ...]) -> None:
    assert paging.key_of(paging.token_of(*key), *kinds) == key
    assert paging.key_of("", *kinds) is None


@pytest.mark.parametrize(
    "key",
    [[], ["a"], ["a", 1.5], [1, "a"], [True, "a"], [1.5, "a", "b"], [float("nan"), "a"], [float("inf"), "a"],
     [-1.5, "a"], [1e300, "a"], [1.5, "nul\0"], [1.5, None], [[1.5], "a"], {"a": 1}, None, 1.5],
)  # fmt: skip
def test_a_token_of_other_parts_was_not_given_out(key: object) -> None:
    token = base64.urlsafe_b64encode(json.dumps(key).encode()).decode()
    with pytest.raises(InvalidArgument, match="does not come from an earlier answer"):
        paging.key_of(token, float, str)


@pytest.mark.parametrize("text", ["x", "é", "%2e%2e", "[" * 100_000, "[1" + "0" * 5000 + "]", "\udcff"])
def test_what_is_no_token_was_not_given_out(text: str) -> None:
    for token in (text, base64.urlsafe_b64encode(text.encode(errors="replace")).decode()):
        with pytest.raises(InvalidArgument):
            paging.key_of(token, int)
