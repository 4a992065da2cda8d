"""Reports through one real server: made with every evaluation, downloaded, and gone with the model version."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

import tiny_bert
from luthier.tasks.recommendation.v1 import recommendation_pb2 as recommendation
from luthier.tasks.text_classification.v1 import text_classification_pb2 as text
from luthier.v1 import dataset_pb2, model_pb2
from luthier_client import AsyncClient, Client
from luthier_client.cli.app import app
from luthier_client.errors import NotFound
from support import Server, create_dataset, fine_tune, interactions, serving

EVIL = "<script>alert(1)</script>"
TELLING = {"praise": ["crisp", "bright", "lovely"], EVIL: ["flat", "sour", "stale"]}
FILLING = ["a", "beer", "from", "the", "north", "with", "malt", "and", "hops"]
EASE = recommendation.Config(algorithm=recommendation.ALGORITHM_EASE, regularization=10)
CONFIG = text.Config(epochs=3, batch_size=16, learning_rate=0.005, head_learning_rate=0.02, max_length=32)


def reviews(path: Path, count: int, seed: int) -> Path:
    draw = random.Random(seed)
    lines = ["text,label"]
    for i in range(count):
        label = list(TELLING)[i % 2]
        words = [*draw.choices(FILLING, k=draw.randint(3, 12)), draw.choice(TELLING[label])]
        lines.append(f"{' '.join(words)} {EVIL},{label}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def brewery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose operator brought a tiny encoder, with a data set of reviews."""
    folder = tmp_path_factory.mktemp("brewery")
    base = tiny_bert.write(folder / "base", [*FILLING, *(word for words in TELLING.values() for word in words)])
    home = folder / "home"
    home.mkdir()
    entry = [
        "[tiny]",
        'title = "A tiny encoder"',
        'tasks = ["text-classification"]',
        'library = "transformers"',
        'architecture = "BertModel"',
        "num_parameters = 30000",
        'input = "text"',
        'license = "Apache-2.0"',
        f"sources = [{json.dumps(f'file:{base}')}]",
        "[tiny.files]",
        *(f"{json.dumps(path.name)} = {{ size_bytes = {path.stat().st_size} }}" for path in base.iterdir()),
    ]
    (home / "bases.toml").write_text("\n".join(entry), encoding="utf-8")
    with serving(home) as server:
        parts = {"train": 96, "validation": 32, "test": 40}
        files = {part: reviews(folder / f"{part}.csv", size, size) for part, size in parts.items()}
        create_dataset(server, "reviews", "text-classification", files)
        yield server


@pytest.fixture(scope="module")
def critic(brewery: Server) -> model_pb2.ModelVersion:
    return fine_tune(brewery, "critic", "text-classification", "reviews", CONFIG, base="bases/tiny")


def scores(page: str) -> dict[str, float]:
    return {name: float(value) for name, value in re.findall(r"<span>(\w+)</span><data value=\"(.+?)\">", page)}


def test_a_fine_tune_leaves_a_report(brewery: Server, critic: model_pb2.ModelVersion, tmp_path: Path) -> None:
    with Client(brewery.address) as client:
        (evaluation,) = client.list_evaluations("critic/1")
        path = client.download_report(evaluation.name, tmp_path / "report.html")
        assert client.get_evaluation(evaluation.name).curves[0].title == "Precision and recall"
    assert not evaluation.curves
    page = path.read_text(encoding="utf-8")
    assert scores(page) == dict(critic.metrics)
    assert "critic/1 on reviews/1, test" in page
    for title in ("Loss", "Validation", "Precision and recall", "Reliability"):
        assert f"<figcaption>{title}</figcaption>" in page
    # Three epochs, each validated once.
    validation = page.split("<figcaption>Validation</figcaption>")[1].split("</svg>")[0]
    assert validation.count("<circle") == 3
    assert page.count('<article class="card example">') == 12
    assert "<script" not in page
    assert EVIL.replace("<", "&lt;").replace(">", "&gt;") in page
    assert not re.search(r"https?:", page)
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_evaluate_downloads_its_report(brewery: Server, critic: model_pb2.ModelVersion, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    arguments = ["evaluate", "critic", "--dataset", "reviews", "--split", "train", "--report", str(path), "--json"]
    result = CliRunner().invoke(app, arguments, env={"LUTHIER_ADDRESS": brewery.address})
    assert (result.exit_code, result.stderr) == (0, "")
    evaluation = json.loads(result.stdout)
    page = path.read_text(encoding="utf-8")
    assert scores(page) == pytest.approx(evaluation["metrics"], abs=0)
    assert "critic/1 on reviews/1, train" in page
    assert "96 examples" in page
    assert "<figcaption>Loss</figcaption>" in page


def test_a_folder_that_is_not_there_is_named_first(brewery: Server, tmp_path: Path) -> None:
    arguments = ["evaluate", "critic", "--dataset", "reviews", "--report", str(tmp_path / "no" / "report.html")]
    result = CliRunner().invoke(app, arguments, env={"LUTHIER_ADDRESS": brewery.address})
    assert result.exit_code == 2
    assert "there is no folder" in result.stderr


def test_a_report_goes_with_its_evaluation(brewery: Server, tmp_path: Path) -> None:
    def reports() -> set[str]:
        return {path.name for path in (brewery.home / "reports").iterdir()}

    before = reports()
    split = dataset_pb2.Split(method="per-user", fractions=[0.25], seed=1)
    create_dataset(brewery, "taken", "recommendation", {"_": interactions(tmp_path / "taken.csv")}, split=split)
    fine_tune(brewery, "gone", "recommendation", "taken", EASE)
    (added,) = reports() - before
    name = f"evaluations/{Path(added).stem}"
    # Users are graded by their own nDCG; the worst and the best are shown with what they took.
    page = (brewery.home / "reports" / added).read_text(encoding="utf-8")
    assert page.count('<article class="card example">') == 12
    assert re.search(r"<dt>item</dt><dd>\[i\d+, i\d+, i\d+\]</dd>", page)

    async def download() -> bytes:
        async with AsyncClient(brewery.address) as client:
            return (await client.download_report(name, tmp_path / "report.html")).read_bytes()

    assert asyncio.run(download()) == (brewery.home / "reports" / added).read_bytes()
    with Client(brewery.address) as client:
        if "LUTHIER_ARTEFACTS" not in os.environ:  # From an object store it would be fetched again.
            (brewery.home / "reports" / added).unlink()
            with pytest.raises(NotFound, match=f"{name}/report was not found; the evaluation was made without one"):
                client.download_report(name, tmp_path / "missing.html")
            assert not (tmp_path / "missing.html").exists()
            (brewery.home / "reports" / added).write_bytes(b"x")
        client.delete_model("gone")
        assert reports() == before
        with pytest.raises(NotFound, match=f"{name} was not found"):
            client.download_report(name, tmp_path / "missing.html")
