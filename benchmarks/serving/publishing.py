"""The models of the benchmark, made, proved and published by Luthier itself, and their bundles."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection
from pathlib import Path

import environments
import numpy as np
import servers

from luthier_client import Client

REALDATA = Path(os.environ.get("LUTHIER_REALDATA", environments.ROOT.parent / "shared"))
TRASHNET = REALDATA / "data" / "cls-trashnet60"
BANKING = REALDATA / "data" / "text-banking77"
MOVIES = REALDATA / "data" / "recsys-ml-latest-small"
SIDE = 224
FACTORS = 64

_MAKERS = (
    "server/luthier/toolkit",
    "server/luthier/worker",
    "plugins",
    "tests/plugins/acme_regression",
    "benchmarks/serving/float_images",
    "benchmarks/serving/publishing.py",
)
"""The code that makes bundles: what was published by another state of it is not used."""
_RANDOM_BASE = """
import sys, safetensors.torch, timm, torch
torch.manual_seed(0)
safetensors.torch.save_file(timm.create_model("mobilenetv3_small_100").state_dict(), sys.argv[1])
"""


def publish(models: Collection[str]) -> tuple[Path, dict[str, Path]]:
    """The home of a server that has these models, and their bundles. Each is made once."""
    state = environments.digest([environments.ROOT / maker for maker in _MAKERS])
    home = environments.BUILD / f"home-{state}"
    bundles = {model: home / "downloaded" / model for model in models}
    if not all((bundle / "model.onnx").exists() for bundle in bundles.values()):
        home.mkdir(parents=True, exist_ok=True)
        with servers.luthier(home, []) as server, Client(server.address, timeout=600) as client:
            there = {model.name.removeprefix("models/") for model in client.list_models()}
            for model in models:
                if model not in there:
                    print(f"publishing {model}", flush=True)
                    _MAKE[model](client, home)
                shutil.rmtree(bundles[model], ignore_errors=True)
                client.download_version(model, bundles[model])
    return home, bundles


def _mlp(client: Client, home: Path) -> None:
    """16 numbers, a hidden layer of 16, one number."""
    draw = np.random.default_rng(0)
    features = draw.normal(size=(500, 16))
    target = np.tanh(features @ draw.normal(size=16))
    rows = zip(features.tolist(), target.tolist(), strict=True)
    table = home / "numbers.jsonl"
    table.write_text("\n".join(json.dumps({"features": row, "target": value}) for row, value in rows), encoding="utf-8")
    client.create_dataset("numbers", table, task="acme-regression").result()
    client.fine_tune("mlp", task="acme-regression", dataset="numbers").result()


def _float_images(client: Client, home: Path) -> None:
    """MobileNetV3 small with random weights, on float tensors."""
    table = home / "seeds.csv"
    table.write_text("seed,label\n" + "".join(f"{n},{'ab'[n % 2]}\n" for n in range(60)), encoding="utf-8")
    client.create_dataset("seeds", table, task="float-images").result()
    client.fine_tune("float-images", task="float-images", dataset="seeds").result()


def _images(client: Client, home: Path) -> None:
    """MobileNetV3 small on photographs, one epoch from random weights: as quick as one that has learnt more."""
    weights = home / "random.safetensors"
    subprocess.run([sys.executable, "-c", _RANDOM_BASE, weights], check=True)
    client.import_base("random", architecture="mobilenetv3_small_100", weights=weights).result()
    client.create_dataset("trashnet", TRASHNET, task="image-classification").result()
    config = {"epochs": 1, "from_scratch": True, "image_size": SIDE}
    client.fine_tune("images", task="image-classification", dataset="trashnet", base="random", config=config).result()


def _texts(client: Client, home: Path) -> None:
    """MiniLM."""
    client.pull_base("minilm-l6").result()
    _on_questions(client, home, "texts", "minilm-l6")


def _small_texts(client: Client, home: Path) -> None:
    """Luthier's own encoder of a million parameters."""
    _on_questions(client, home, "small-texts", "luthier-text")


def _on_questions(client: Client, home: Path, model: str, base: str) -> None:
    """A base on a tenth of the questions to a bank, one epoch."""
    with (BANKING / "train.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    table = home / "banking.csv"
    with table.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([rows[0], *rows[1::10]])
    client.create_dataset(model, table, task="text-classification", columns={"label": "category"}).result()
    client.fine_tune(model, task="text-classification", dataset=model, base=base, config={"epochs": 1}).result()


def _movies(client: Client, home: Path) -> None:
    """ALS."""
    columns = {"user": "userId", "item": "movieId", "weight": "rating", "time": "timestamp"}
    client.create_dataset("movies", MOVIES / "ratings.csv", task="recommendation", columns=columns).result()
    config = {"algorithm": "ALGORITHM_ALS", "factors": FACTORS, "regularization": 10.0}
    client.fine_tune("movies", task="recommendation", dataset="movies", config=config).result()


_MAKE: dict[str, Callable[[Client, Path], None]] = {
    "mlp": _mlp,
    "float-images": _float_images,
    "images": _images,
    "texts": _texts,
    "small-texts": _small_texts,
    "movies": _movies,
}
