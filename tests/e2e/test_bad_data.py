"""The corpus of bad data sets through a real server: every problem is told at its place, and nothing is left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from bad_data import CORPUS, Bad
from luthier.v1.dataset_pb2 import STRICTNESS_LENIENT, STRICTNESS_STRICT
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


BAD_ALONE = {
    "texts-latin-1",
    "texts-too-many-cells",
    "interactions-nan",
    "entities-spans-outside",
    "photographs-damaged",
    "segmentation-damaged",
}
"""Data sets of which some rows or images are bad and the others make a data set."""


@pytest.mark.parametrize("bad", [bad for bad in CORPUS if bad.id in BAD_ALONE], ids=lambda bad: bad.id)
def test_what_is_bad_alone_is_left_out_where_one_says_so(server: Server, tmp_path: Path, bad: Bad) -> None:
    with Client(server.address) as client:
        created = client.create_dataset(
            f"lenient-{bad.id}",
            bad.write(tmp_path),
            task=bad.task,
            format=bad.format,
            columns=bad.columns,
            options=bad.options,
            strictness=STRICTNESS_LENIENT,
        )
        version = created.result(timeout=60)
    told = "\n".join(warning.message for warning in version.warnings)
    for said in bad.found.values():
        assert all(words in told for words in said.split("; "))
    assert version.num_examples["train"] > 0


def test_where_all_is_bad_nothing_is_left_to_take(server: Server, tmp_path: Path) -> None:
    (bad,) = (bad for bad in CORPUS if bad.id == "detection-damaged-images")
    with Client(server.address) as client, pytest.raises(LuthierClientError) as caught:
        client.create_dataset(
            "left", bad.write(tmp_path), task=bad.task, options=bad.options, strictness=STRICTNESS_LENIENT
        ).result(timeout=60)
    assert caught.value.violations.keys() == bad.found.keys()


def test_what_is_only_odd_is_refused_where_one_says_so(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    rows = "".join(f"a beer of the kind {i},{('dark', 'pale')[i % 2]}\n" for i in range(60))
    path.write_text(f"text,label\n{rows}a beer of the kind 0,pale\n")
    with Client(server.address) as client:
        version = client.create_dataset("usual", path, task="text-classification").result(timeout=60)
        (warning, *_) = version.warnings
        strict = client.create_dataset("strict", path, task="text-classification", strictness=STRICTNESS_STRICT)
        with pytest.raises(LuthierClientError) as caught:
            strict.result(timeout=60)
        with pytest.raises(NotFound):
            client.get_dataset("strict")
    assert warning.message in caught.value.violations[warning.field]


def kept(home: Path) -> set[Path]:
    """The data sets in a server's home."""
    return set((home / "datasets").glob("*"))
