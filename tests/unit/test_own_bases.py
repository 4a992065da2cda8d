"""Luthier's own small bases: they come with it, are small, and are better than nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from luthier import bases
from luthier.bases import Catalogue
from luthier.entries import Entry
from luthier.task import Run
from luthier.toolkit.backbones import create_backbone, read_base
from luthier.toolkit.text import load_encoder

MOST_BYTES = 3_000_000

OWN = [entry for entry in Catalogue.load().all() if any(s.startswith("own:") for s in entry.sources)]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", refuse)


def test_there_is_one_for_every_task_that_takes_a_base() -> None:
    tasks = {task for entry in OWN for task in entry.tasks}
    vision = {"image-classification", "object-detection", "semantic-segmentation"}
    assert tasks == vision | {"text-classification", "entity-recognition"}


@pytest.mark.parametrize("entry", OWN, ids=lambda entry: entry.id)
def test_it_is_pulled_without_a_network_and_small(entry: Entry, tmp_path: Path) -> None:
    folder = bases.pull(entry, tmp_path)
    assert sum(path.stat().st_size for path in folder.iterdir()) <= MOST_BYTES
    assert all(file.sha256 for file in entry.files)


def test_the_vision_base_gives_maps_of_every_stride(tmp_path: Path) -> None:
    entry = next(entry for entry in OWN if entry.library == "timm")
    folder = bases.pull(entry, tmp_path)
    backbone = create_backbone(read_base(folder), folder, features_only=True).eval()
    with torch.inference_mode():
        maps = backbone(torch.zeros(1, 3, 64, 64))
    assert [64 // m.shape[-1] for m in maps] == [2, 4, 8, 16, 32]


def test_the_text_base_reads_any_text(tmp_path: Path) -> None:
    entry = next(entry for entry in OWN if entry.library == "transformers")
    run = Run(parts={}, config=None, base=bases.pull(entry, tmp_path), seed=0, directory=tmp_path)
    encoder, tokenizer = load_encoder(run, 256)
    tokens = tokenizer(["The beer was lovely.", "Ünïcode naïveté, £5"], padding=True, return_tensors="pt")
    assert tokenizer.unk_token_id not in tokens.input_ids
    with torch.inference_mode():
        states = encoder(**{name: tokens[name] for name in ("input_ids", "attention_mask")}).last_hidden_state
    assert states.shape == (2, tokens.input_ids.shape[1], 128)
    assert states.isfinite().all()
