"""One of timm's tiny test models with random weights, as a base: small enough to be tuned in seconds."""

from __future__ import annotations

import json
from pathlib import Path

ARCHITECTURE = "test_efficientnet"


def write(directory: Path, seed: int = 0, side: int = 64, architecture: str = ARCHITECTURE) -> Path:
    """Writes weights and base.json of a backbone that was, it says, trained at `side` pixels."""
    import timm
    import torch
    from safetensors.torch import save_model

    torch.manual_seed(seed)
    save_model(timm.create_model(architecture, num_classes=10), str(directory / "model.safetensors"))
    description = {
        "id": "tiny",
        "library": "timm",
        "architecture": architecture,
        "weights": "model.safetensors",
        "input_size": [side, side],
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "num_classes": 10,
    }
    (directory / "base.json").write_text(json.dumps(description), encoding="utf-8")
    return directory
