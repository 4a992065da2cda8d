"""Models of every task, tuned further on what their callers were told afterwards, in one call each."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import six_models
from luthier import images
from luthier.v1 import model_pb2
from luthier_client import Client
from support import serving

COUNT = 12


@pytest.fixture(scope="module")
def client(tuned_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """Of a server whose models record predictions with their inputs."""
    home = shutil.copytree(tuned_home, tmp_path_factory.mktemp("retune") / "home")
    recording = model_pb2.Recording(mode=model_pb2.Recording.MODE_INPUTS)
    with serving(home) as server, Client(server.address) as client:
        for model in six_models.MODELS:
            client.set_alias(model, "production", 1, recording)
        time.sleep(1.0)  # Each process hears of it within a quarter of a second.
        yield client


def picture(number: int) -> bytes:
    return images.encode_png(six_models.scene(number))


def mask(number: int) -> bytes:
    values = np.zeros((32, 32), np.uint8)
    values[8:24, 8:24] = number % 2 + 1
    return images.encode_png(values)


# What came in and what was true of it, none of which the models' own data have.
LIVE: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {
    "mail": [
        ({"text": f"{'win a prize today' if i % 2 else 'lunch tomorrow'} {i}"}, {"label": "spam" if i % 2 else "ham"})
        for i in range(COUNT)
    ],
    "names": [
        (
            {"text": f"Bob{i} walked to Rome{i}"},
            {"entities": [{"start": 0, "end": len(f"Bob{i}"), "label": "PER"}]},
        )
        for i in range(COUNT)
    ],
    "photos": [({"image": picture(1000 + i)}, {"label": f"kind{i % 2}"}) for i in range(COUNT)],
    "boxes": [
        (
            {"image": picture(1000 + i)},
            {
                "objects": [
                    {"label": "green" if i % 2 else "red", "x_min": 8, "y_min": 8, "x_max": 24, "y_max": 24},
                ]
            },
        )
        for i in range(COUNT)
    ],
    "masks": [
        ({"image": picture(1000 + i)}, {"mask": mask(i), "values": [0, 1, 2], "labels": ["0", "1", "2"]})
        for i in range(COUNT)
    ],
}


@pytest.mark.parametrize("model", LIVE)
def test_feedback_of_each_task_becomes_examples_that_a_version_is_tuned_on(client: Client, model: str) -> None:
    task = six_models.MODELS[model]
    for instance, truth in LIVE[model]:
        answer = client.predict(model, [instance])
        client.record_feedback(model, answer.prediction_id, [truth])
    own = client.get_dataset_version(f"{model}/1")
    version = client.fine_tune_from_feedback(
        model, config=six_models.tuning(task)["config"], parity_tolerance=1
    ).result(timeout=300)
    assert version.name == f"models/{model}/versions/2"
    # Texts go on from the version; a version of images keeps no weights.
    goes_on = task in ("text-classification", "entity-recognition")
    assert version.base == (f"models/{model}/versions/1" if goes_on else "bases/luthier-vision")
    made = client.get_dataset_version(f"{model}-feedback/1")
    assert version.dataset_version == made.name
    assert (made.feedback.num_predictions, made.feedback.joined) == (COUNT, own.name)
    assert sum(made.num_examples.values()) == sum(own.num_examples.values()) + COUNT
