"""Drift on real data, of served bundles: few false alarms, and one for each of what must raise one."""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message
from PIL import Image, ImageEnhance

from luthier import datasets, drift, plugins
from luthier.store import Store
from luthier.task import Task
from luthier.tasks.image_classification.v1 import image_classification_pb2 as images
from luthier.tasks.recommendation.v1 import recommendation_pb2 as recommendation
from luthier.tasks.text_classification.v1 import text_classification_pb2 as texts
from luthier.v1 import dataset_pb2
from luthier.v1.model_pb2 import ModelVersion
from luthier.v1.monitoring_pb2 import Drift
from luthier.worker import evaluate
from support import Server, create_dataset, fine_tune

pytestmark = [pytest.mark.realdata, pytest.mark.slow]
WINDOWS = 100


class Watched:
    """A version's bundle, its profile and what it was made of."""

    def __init__(self, server: Server, version: ModelVersion, task: str) -> None:
        store = Store(server.home, "")
        self.task: Task = plugins.load().task(task)
        self.bundle = store.bundle(version.digest)
        self.profile = drift.load(self.bundle, version.name)
        self.parts = datasets.load(store.dataset(version.dataset_digest))
        self.instances = self.task.instances(self.parts["test"])
        self.facts = self.facts_of(self.instances)

    def facts_of(self, instances: Sequence[Message]) -> list[Mapping[str, Any]]:
        predictions = evaluate.predict(self.task, self.bundle, instances)
        return [self.task.features(*pair) for pair in zip(instances, predictions, strict=True)]

    def look(self, instances: Sequence[Message]) -> set[str]:
        found = drift.compare(self.profile, self.facts_of(instances))
        assert found.verdict != Drift.VERDICT_TOO_FEW
        return {one.name for one in found.features if one.alarm}

    def false_alarms(self, size: int) -> tuple[int, int]:
        """Of 100 windows drawn from the test part with replacement against the published profile; and of 100 drawn
        without from one half of it against a profile of the other, over four ways to halve it."""
        draw = random.Random(0)
        again = sum(
            drift.compare(self.profile, draw.choices(self.facts, k=size)).verdict == Drift.VERDICT_ALARM
            for _ in range(WINDOWS)
        )
        halves = 0
        for seed in range(4):
            mixed = random.Random(seed).sample(self.facts, len(self.facts))
            middle = len(mixed) // 2
            profile = drift.profile_of(mixed[:middle])
            for _ in range(WINDOWS // 4):
                halves += drift.compare(profile, draw.sample(mixed[middle:], size)).verdict == Drift.VERDICT_ALARM
        print(f"{self.task.id}: false alarms {again} and {halves} of {WINDOWS}")
        return again, halves


def test_another_domain_of_texts(server: Server, realdata: Path) -> None:
    sms = realdata / "data" / "text-sms-spam" / "sms.tsv"
    columns = {"label": "0", "text": "1"}
    create_dataset(server, "sms", "text-classification", {"_": sms}, columns=columns, no_header=True)
    version = fine_tune(server, "sms", "text-classification", "sms", texts.Config(epochs=1), base="bases/luthier-text")
    watched = Watched(server, version, "text-classification")
    assert max(watched.false_alarms(100)) <= 5
    with (realdata / "data" / "text-banking77" / "test.csv").open(encoding="utf-8") as file:
        others = [texts.Instance(text=row["text"]) for row in csv.DictReader(file)]
    assert {"confidence", "signs", "characters"} <= watched.look(random.Random(0).sample(others, 100))


def test_darkened_images(server: Server, realdata: Path) -> None:
    folder = create_zip(server, realdata / "data" / "cls-trashnet60")
    split = dataset_pb2.Split(method="hash", fractions=[0.4, 0.1, 0.5])
    create_dataset(server, "trash", "image-classification", {"_": folder}, split=split)
    config = images.Config(epochs=3)
    version = fine_tune(server, "trash", "image-classification", "trash", config, base="bases/luthier-vision")
    watched = Watched(server, version, "image-classification")
    assert max(watched.false_alarms(60)) <= 5
    chosen = random.Random(0).sample(watched.instances, 100)
    for factor in (0.8, 0.5):
        assert "brightness" in watched.look([images.Instance(image=darker(one.image, factor)) for one in chosen])  # type: ignore[attr-defined]


def test_shuffled_users(server: Server, realdata: Path) -> None:
    ratings = realdata / "data" / "recsys-ml-latest-small" / "ratings.csv"
    columns = {"user": "userId", "item": "movieId", "weight": "rating", "time": "timestamp"}
    split = dataset_pb2.Split(method="per-user", fractions=[0.25], seed=42)
    create_dataset(server, "films", "recommendation", {"_": ratings}, columns=columns, split=split)
    config = recommendation.Config(algorithm=recommendation.ALGORITHM_EASE, regularization=300)
    watched = Watched(server, fine_tune(server, "films", "recommendation", "films", config), "recommendation")
    assert max(watched.false_alarms(100)) <= 5
    draw = random.Random(0)
    users, items = (watched.parts["train"][name].to_pylist() for name in ("user", "item"))
    some = draw.sample(sorted(set(users)), 200)
    assert (
        watched.look([recommendation.Instance(history=taken, k=10) for taken in histories(users, items, some)]) == set()
    )
    draw.shuffle(users)
    mixed = [recommendation.Instance(history=taken, k=10) for taken in histories(users, items, some)]
    assert "best_score" in watched.look(mixed)
    strangers = [recommendation.Instance(user=f"x{user}", k=10, allow_unknown=True) for user in some]
    assert watched.look(strangers) == {"answered"}


def histories(users: Sequence[str], items: Sequence[str], wanted: Sequence[str]) -> list[list[str]]:
    taken: dict[str, dict[str, None]] = {}
    for user, item in zip(users, items, strict=True):
        taken.setdefault(user, {})[item] = None
    return [list(taken[user]) for user in wanted]


def darker(data: bytes, factor: float) -> bytes:
    stream = io.BytesIO()
    ImageEnhance.Brightness(Image.open(io.BytesIO(data)).convert("RGB")).enhance(factor).save(stream, "JPEG")
    return stream.getvalue()


def create_zip(server: Server, folder: Path) -> Path:
    from luthier_client.transfer import as_file

    target = server.home / "trash.zip"
    with as_file(folder) as file:
        target.write_bytes(Path(file).read_bytes())
    return target
