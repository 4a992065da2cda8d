import json
from pathlib import Path

import pytest

from luthier import bundle
from luthier.errors import DataLoss, FailedPrecondition


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.onnx").write_bytes(b"weights")
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "vocab.txt").write_text("a\nb\n")
    return tmp_path


def test_a_sealed_bundle_verifies(folder: Path) -> None:
    digest = bundle.seal(folder, {"task": "beer"})
    manifest = bundle.verify(folder, digest)
    assert manifest["task"] == "beer"
    assert [file["path"] for file in manifest["files"]] == ["model.onnx", "tokenizer/vocab.txt"]
    assert manifest["files"][0]["size_bytes"] == 7


def test_sealing_again_leaves_the_digest(folder: Path) -> None:
    assert bundle.seal(folder, {"seed": 1}) == bundle.seal(folder, {"seed": 1})


def test_lineage_is_part_of_the_digest(folder: Path) -> None:
    assert bundle.seal(folder, {"seed": 1}) != bundle.seal(folder, {"seed": 2})


def test_a_moved_bundle_verifies(folder: Path) -> None:
    digest = bundle.seal(folder, {})
    bundle.verify(folder.rename(folder.with_name("moved")), digest)


def test_a_flipped_byte_is_data_loss(folder: Path) -> None:
    digest = bundle.seal(folder, {})
    (folder / "model.onnx").write_bytes(b"weighty")
    with pytest.raises(DataLoss, match=r"model\.onnx"):
        bundle.verify(folder, digest)


def test_a_missing_file_is_data_loss(folder: Path) -> None:
    digest = bundle.seal(folder, {})
    (folder / "tokenizer" / "vocab.txt").unlink()
    with pytest.raises(DataLoss, match=r"tokenizer/vocab\.txt"):
        bundle.verify(folder, digest)


def test_a_file_too_many_is_data_loss(folder: Path) -> None:
    digest = bundle.seal(folder, {})
    (folder / "extra.bin").write_bytes(b"")
    with pytest.raises(DataLoss, match=r"extra\.bin does not belong"):
        bundle.verify(folder, digest)


def test_a_missing_manifest_is_data_loss(folder: Path) -> None:
    with pytest.raises(DataLoss, match="manifest cannot be read"):
        bundle.verify(folder, "0" * 64)


def test_a_rewritten_manifest_is_data_loss(folder: Path) -> None:
    digest = bundle.seal(folder, {"seed": 1})
    bundle.seal(folder, {"seed": 2})
    with pytest.raises(DataLoss, match="not the one that was published"):
        bundle.verify(folder, digest)


def test_a_newer_format_says_to_update(folder: Path) -> None:
    digest = bundle.seal(folder, {"format": bundle.FORMAT + 1})
    assert json.loads((folder / bundle.MANIFEST).read_text())["format"] == bundle.FORMAT + 1
    with pytest.raises(FailedPrecondition, match="update the server"):
        bundle.verify(folder, digest)
