"""Which bases there are: the catalogue, an operator's additions, imported ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from luthier import sources
from luthier.bases import Catalogue, proto, pull
from luthier.entries import LIBRARIES, Entry, File, digest_of
from luthier.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
)
from luthier.v1 import base_pb2
from tiny_entry import CONTENT, HUB, SEEING, entry, sha256


def test_the_catalogue_has_minilm_with_a_hash_for_every_file():
    found = Catalogue.load().get("minilm-l6")
    assert [source.partition(":")[0] for source in found.sources] == ["hub", "package"]
    assert all(file.sha256 and file.size_bytes for file in found.files)
    assert {file.path for file in found.files} >= {"config.json", "model.safetensors", "tokenizer.json"}


def test_an_unknown_base_is_named_with_those_there_are():
    with pytest.raises(NotFound, match=r"bases/nope was not found; there are minilm-l6"):
        Catalogue.load().get("nope")


OPERATORS = """
[{id}]
title = "Ours"
tasks = ["text-classification"]
library = "{library}"
architecture = "BertModel"
num_parameters = 1
input = "text"
license = "MIT"
sources = ["{source}"]
files = {{ "model.safetensors" = {{}}, "{file}" = {{ sha256 = ["{sha256}"] }} }}
"""


def operators(
    tmp_path: Path, id="ours", source="file:/srv/base", file="config.json", sha256="0" * 64, library="transformers"
) -> Path:
    path = tmp_path / "bases.toml"
    path.write_text(OPERATORS.format(id=id, source=source, file=file, sha256=sha256, library=library))
    return path


def test_an_operators_catalogue_adds_and_replaces(tmp_path):
    assert Catalogue.load(operators(tmp_path)).get("ours").sources == ("file:/srv/base",)
    replaced = Catalogue.load(operators(tmp_path, id="minilm-l6"))
    assert replaced.get("minilm-l6").title == "Ours"
    assert Catalogue.load(tmp_path / "absent.toml").all() == Catalogue.load().all()


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"id": "OURS"}, "small letters"),
        ({"source": "ftp://x"}, "is none of hub:"),
        ({"source": "hub:../x@main"}, "is none of hub:"),
        ({"file": "../x"}, "leads out of the base"),
        ({"file": "/x"}, "leads out of the base"),
        ({"sha256": "abc"}, "64 small hexadecimal digits"),
        ({"library": "keras"}, "none of timm, torchvision, transformers"),
        ({"library": "timm"}, "a base for images has a table `preprocessing`"),
        ({"file": "model.pth"}, "one of the files must be its weights"),
    ],
)
def test_what_is_wrong_in_an_operators_catalogue_is_said(tmp_path, wrong, why):
    with pytest.raises(InvalidArgument, match=why):
        Catalogue.load(operators(tmp_path, **wrong))


def test_an_entry_of_other_keys_is_told_which(tmp_path):
    path = operators(tmp_path)
    path.write_text(path.read_text().replace("license", "licence"))
    with pytest.raises(InvalidArgument, match="it lacks license and has no use for licence"):
        Catalogue.load(path)


@pytest.mark.parametrize("text", ["[ours]\ntitle = 'x'", "ours = 1", "[ours"])
def test_a_catalogue_of_another_form_is_refused(tmp_path, text):
    path = tmp_path / "bases.toml"
    path.write_text(text)
    with pytest.raises(InvalidArgument, match=r"bases\.toml"):
        Catalogue.load(path)


def test_only_an_operator_may_name_files_of_the_machine():
    with pytest.raises(ValueError, match="only an operator"):
        sources.check("file:/srv/base", own=False)


def imported(directory: Path) -> Entry:
    """An imported base whose files are in the folder of bases."""
    files = tuple(File(path, (sha256(data),), len(data)) for path, data in CONTENT.items())
    report = base_pb2.ImportReport(matched=3, dropped=["head.weight"], dtypes=["float16"])
    made = replace(
        entry(HUB),
        library="timm",
        preprocessing=SEEING,
        sources=(),
        files=files,
        digest=digest_of(files),
        gmacs=0.5,
        report=report,
    )
    for path, data in CONTENT.items():
        (directory / made.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / made.folder / path).write_bytes(data)
    return made


def test_an_imported_base_is_seen_by_every_process_at_once_and_is_used_from_its_folder(database, tmp_path):
    here, there = Catalogue.load(database=database), Catalogue.load(database=database)
    made = imported(tmp_path)
    there.check_free("tiny")
    with database.write() as connection:
        here.add(connection, made)
    assert there.get("tiny") == made
    assert there.all()[-1] == made
    assert pull(there.get("tiny"), tmp_path) == tmp_path / f"tiny@{made.digest[:16]}"
    shown = proto(there.get("tiny"), tmp_path)
    assert (shown.imported, shown.pulled, shown.import_report.dropped[:]) == (True, True, ["head.weight"])
    with pytest.raises(AlreadyExists, match="there is a base tiny already"):
        there.check_free("tiny")
    with pytest.raises(AlreadyExists), database.write() as connection:
        there.add(connection, made)


def test_an_imported_base_with_damaged_files_is_not_used(tmp_path):
    made = imported(tmp_path)
    (tmp_path / made.folder / "config.json").write_bytes(b"[]")
    with pytest.raises(DataLoss, match="the files of the base tiny are no longer as imported"):
        pull(made, tmp_path)


def test_only_imported_bases_can_be_deleted(database, tmp_path):
    catalogue = Catalogue.load(database=database)
    made = imported(tmp_path)
    with database.write() as connection:
        catalogue.add(connection, made)
    assert catalogue.delete("tiny") == made
    with pytest.raises(NotFound):
        catalogue.get("tiny")
    with pytest.raises(FailedPrecondition, match="minilm-l6 is of the catalogue"):
        catalogue.delete("minilm-l6")


def test_the_catalogue_holds_small_and_large_of_each_family():
    entries = Catalogue.load().all()
    families = {(task, entry.library) for entry in entries for task in entry.tasks}
    assert families == {
        ("text-classification", "transformers"),
        ("entity-recognition", "transformers"),
        ("image-classification", "timm"),
        ("object-detection", "timm"),
        ("object-detection", "torchvision"),
        ("semantic-segmentation", "timm"),
        ("semantic-segmentation", "torchvision"),
    }
    for library in LIBRARIES:
        sizes = [entry.num_parameters for entry in entries if entry.library == library]
        assert max(sizes) > 10 * min(sizes)
    assert all(found.gmacs and found.license for found in entries)
    for found in entries:
        assert bool(found.languages) == (found.library == "transformers")
        assert found.library != "torchvision" or found.files[0].sha256_prefix == found.weights[-12:-4]
