"""The corpus of bad data sets through a real server: every problem is told at its place, and nothing is left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from bad_data import CORPUS, Bad
from luthier_client import Client, LuthierClientError
from luthier_client.errors import InvalidArgument, NotFound
from support import Server


def test_the_corpus_has_every_task() -> None:
    assert len(CORPUS) >= 60
    assert len({bad.id for bad in CORPUS}) == len(CORPUS)
    assert len({bad.task for bad in CORPUS}) == 6


@pytest.mark.parametrize("bad", CORPUS, ids=lambda bad: bad.id)
def test_bad_data_is_refused(server: Server, tmp_path: Path, bad: Bad) -> None:
    before = kept(server.home)
    with Client(server.address) as client:
        with pytest.raises(LuthierClientError) as caught:
            client.create_dataset(
                bad.id,
                bad.write(tmp_path),
                task=bad.task,
                format=bad.format,
                columns=bad.columns,
                options=bad.options,
            ).result(timeout=60)
        with pytest.raises(NotFound):
            client.get_dataset(bad.id)
    assert caught.value.code == InvalidArgument.code
    assert caught.value.violations.keys() == bad.found.keys()
    for place, said in bad.found.items():
        for words in said.split("; "):
            assert words in caught.value.violations[place]
    assert kept(server.home) == before


def kept(home: Path) -> set[Path]:
    """The data sets in a server's home."""
    return set((home / "datasets").glob("*"))
