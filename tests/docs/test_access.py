"""docs/operations.md says who may call what: the table is the program's, and its policy file is one."""

from __future__ import annotations

import re

import pytest

from luthier.access.policy import RULES, table
from luthier.access.policy_file import PolicyFile, parse
from luthier.access.principal import Limits, Principal, Role
from support import ROOT

TEXT = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")


def test_the_policy_table_is_the_programs() -> None:
    """`python -c "from luthier.access.policy import table; print(table())"` prints what belongs there."""
    found = re.search(r"<!-- policy table -->\n(.*)<!-- /policy table -->", TEXT, re.DOTALL)
    assert found is not None
    assert found[1] == f"{table(RULES)}\n"


@pytest.mark.parametrize(
    ("name", "role", "shop", "bank"),
    [
        ("jwt:ann@example.com", Role.CALLER, True, False),
        ("jwt:eve@example.com", Role.NONE, True, True),
        ("jwt:bob@example.org", Role.ADMIN, True, True),
        ("ci-1", Role.TUNER, True, True),
    ],
)
def test_the_policy_file_of_the_documents_does_what_it_says(name: str, role: Role, shop: bool, bank: bool) -> None:
    [example] = [block for block in re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL) if "[[principals]]" in block]
    file = PolicyFile(None)
    file._entries = parse(example)
    bounded = file.bound(Principal(name, Role.ADMIN))
    assert (bounded.role, bounded.models.has("shop-1"), bounded.models.has("bank")) == (role, shop, bank)
    assert file.bound(Principal("ci-1", Role.ADMIN)).limits == Limits(operations=4, storage_bytes=50_000_000_000)
