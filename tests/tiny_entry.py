"""An entry of the catalogue for a base of three small files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from luthier.entries import Entry, File, Preprocessing

CONTENT = {"config.json": b"{}", "model.safetensors": b"w" * 3_000_000, "sub/vocab.txt": b"a\nb\n"}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def entry(*origins: str, content: Mapping[str, bytes] = CONTENT, hashed: bool = True) -> Entry:
    files = [File(path, (sha256(data),) if hashed else (), len(data)) for path, data in content.items()]
    return Entry(
        id="tiny",
        title="Tiny",
        tasks=("text-classification",),
        library="transformers",
        architecture="BertModel",
        num_parameters=7,
        input="text",
        license="Apache-2.0",
        files=tuple(files),
        sources=origins,
    )


HUB = "hub:acme/tiny@r1"
SEEING = Preprocessing(input_size=(224, 160), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), num_classes=1000)
