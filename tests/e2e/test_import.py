"""A checkpoint of one's own, through a real server: imported, listed, suggested, pulled, deleted."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("torchvision")

import timm
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from luthier_client import AsyncClient, Client
from luthier_client.cli.app import app
from luthier_client.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, OperationFailed
from support import Server, serving

TINY = "test_efficientnet"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    state = timm.create_model(TINY, num_classes=3).state_dict()
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, tmp_path / "ours.pth")
    return tmp_path / "ours.pth"


def run(server: Server, *arguments: str) -> Any:
    result = CliRunner().invoke(app, [*arguments, "--address", server.address, "--json"])
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_from_import_to_deletion(server: Server, weights: Path) -> None:
    with Client(server.address) as client:
        base = client.import_base("ours", architecture=TINY, weights=weights, license="house").result()
        assert (base.name, base.library, base.architecture) == ("bases/ours", "timm", TINY)
        assert (base.imported, base.pulled, base.license) == (True, True, "house")
        assert base.import_report.dropped == ["classifier.bias", "classifier.weight"]
        assert base.preprocessing.num_classes == 0
        assert client.get_base("ours") == base
        assert next(b for b in client.list_bases("image-classification") if b.imported) == base
        assert client.pull_base("ours").result() == base
        folder = next((server.home / "bases").glob("ours@*"))
        assert {path.name for path in folder.iterdir()} == {"base.json", "model.safetensors"}
        assert [file.path for file in base.files] == ["base.json", "model.safetensors"]

        found = client.suggest_bases("image-classification", max_latency_ms=5, max_results=1)
        assert [suggestion.base.name for suggestion in found.suggestions] == ["bases/ours"]
        assert found.suggestions[0].reasons[0] == "your own checkpoint"

        with pytest.raises(AlreadyExists, match="there is a base ours already"):
            client.import_base("ours", architecture=TINY, weights=weights)
        client.delete_base("ours")
        with pytest.raises(NotFound):
            client.get_base("ours")
        assert not folder.exists()
        with pytest.raises(FailedPrecondition):
            client.delete_base("minilm-l6")


def test_what_does_not_fit_is_refused_and_leaves_nothing(server: Server, tmp_path: Path) -> None:
    save_file({"weight": torch.ones(1)}, tmp_path / "f.safetensors")
    with Client(server.address) as client:
        with pytest.raises(OperationFailed) as failed:
            client.import_base("stray", architecture=TINY, weights=tmp_path / "f.safetensors").result()
        assert "conv_stem.weight is missing" in failed.value.violations["weights"]
        with pytest.raises(InvalidArgument) as refused:
            client.import_base(
                "stray",
                architecture="",
                weights=tmp_path / "f.safetensors",
                files={"../evil.json": tmp_path / "f.safetensors", "run.py": tmp_path / "f.safetensors"},
                tasks=["knitting"],
            )
        assert set(refused.value.violations) == {"architecture", "tasks", "files[0].path", "files[1].path"}
        with pytest.raises(InvalidArgument) as negative:
            client.suggest_bases("image-classification", max_latency_ms=-1)
        assert set(negative.value.violations) == {"max_latency_ms"}
    assert not list((server.home / "bases").glob("stray*"))


def test_by_the_command_line_and_past_the_servers_end(tmp_path: Path, weights: Path) -> None:
    with serving(tmp_path / "home") as server:
        base = run(
            server, "bases", "import", "by-hand", "--architecture", TINY, "--weights", str(weights),
            "--task", "image-classification", "--input-size", "96", "--mean", "0.5,0.5,0.5",
        )  # fmt: skip
    assert base["tasks"] == ["image-classification"]
    assert base["preprocessing"]["width"] == 96
    assert base["preprocessing"]["mean"] == [0.5, 0.5, 0.5]
    with serving(tmp_path / "home") as server:
        assert run(server, "bases", "show", "by-hand") == base
        suggested = run(server, "bases", "suggest", "--task", "image-classification", "--max-size-mb", "2")
        assert [suggestion["base"]["name"] for suggestion in suggested["suggestions"]] == ["bases/by-hand"]
        run(server, "bases", "delete", "by-hand")
        assert not list((server.home / "bases").glob("by-hand*"))


def test_by_the_asyncio_client(server: Server, weights: Path) -> None:
    async def go() -> None:
        async with AsyncClient(server.address) as client:
            operation = await client.import_base("soon", architecture=TINY, weights=weights)
            base = await operation.result()
            assert base.import_report.matched == 86
            found = await client.suggest_bases("object-detection", max_latency_ms=5)
            assert found.suggestions[0].base == base
            await client.delete_base("soon")

    asyncio.run(go())
