"""What is asked of the servers: the same question as bytes for Luthier, as bytes for its peers, and as arrays."""

from __future__ import annotations

import csv
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import publishing
from google.protobuf.message import Message

from luthier import plugins
from luthier.oip.v2 import open_inference_pb2 as oip
from luthier.tasks.image_classification.v1 import image_classification_pb2 as image_pb
from luthier.tasks.recommendation.v1 import recommendation_pb2 as recommendation_pb
from luthier.tasks.text_classification.v1 import text_classification_pb2 as text_pb

QUESTIONS = 32
"""Different requests of each case, sent over and over."""
INFER = "/inference.GRPCInferenceService/ModelInfer"

Answer = Mapping[str, Any]
"""What an answer says, however it was written: texts, and arrays of numbers."""


@dataclass(frozen=True)
class Questions:
    """The requests of a case."""

    luthier: list[bytes]
    peers: list[bytes]
    arrays: list[dict[str, np.ndarray]]
    """What the graph is given in the end."""


@dataclass(frozen=True)
class Case(ABC):
    """A kind of request."""

    id: str
    title: str
    model: str
    """As it was published."""
    over_triton: float
    """What Luthier's throughput has to be at least, in Triton's."""

    kind: ClassVar[str]
    """What the peers' Python makes of a request; see `peers/answers.py`."""
    raw_outputs: ClassVar[Mapping[str, str]] = {}
    method: ClassVar[str]
    """The call that Luthier is sent."""

    @property
    def deployment(self) -> str:
        """The name of the peers' model."""
        return self.model if self.kind == "tensors" else f"{self.model}-{self.kind}"

    @abstractmethod
    def questions(self, bundle: Path) -> Questions:
        """The requests; the same each time."""

    @abstractmethod
    def said_by_luthier(self, answer: bytes) -> Answer:
        """Reads an answer of Luthier's."""

    def said_by_peer(self, answer: bytes) -> Answer:
        """Reads an answer of a peer's."""
        return read_tensors(answer)


@dataclass(frozen=True)
class TensorCase(Case):
    """Tensors of the graph's own, by the Open Inference Protocol: the very same bytes for all."""

    draw: Callable[[np.random.Generator], dict[str, np.ndarray]]

    kind = "tensors"
    method = INFER

    def questions(self, bundle: Path) -> Questions:
        """Random numbers."""
        random = np.random.default_rng(0)
        arrays = [self.draw(random) for _ in range(QUESTIONS)]
        requests = [tensor_request(self.model, one) for one in arrays]
        return Questions(requests, requests, arrays)

    def said_by_luthier(self, answer: bytes) -> Answer:
        """The tensors."""
        return read_tensors(answer)


@dataclass(frozen=True)
class TypedCase(Case):
    """What people have, by the service of the task; a peer's Python does what Luthier's codec does."""

    task: str

    @abstractmethod
    def instances(self, bundle: Path) -> list[tuple[bytes, Message]]:
        """What is asked, raw for the peers and as an instance for Luthier."""

    def questions(self, bundle: Path) -> Questions:
        """The first ones of the data, at even distances."""
        asked = self.instances(bundle)
        chosen = [asked[i * len(asked) // QUESTIONS] for i in range(QUESTIONS)]
        task = plugins.load().task(self.task)
        codec, request = task.open(bundle), task.methods[0].request
        return Questions(
            [request(model=self.model, instances=[instance]).SerializeToString() for _, instance in chosen],
            [tensor_request(self.deployment, {"raw": np.array([raw], object)}) for raw, _ in chosen],
            [dict(codec.encode([instance])) for _, instance in chosen],
        )


@dataclass(frozen=True)
class Jpegs(TypedCase):
    """Photographs."""

    kind = "jpeg"
    raw_outputs = {"label": "BYTES", "score": "FP32"}
    method = "/luthier.tasks.image_classification.v1.ImageClassificationService/Classify"

    def instances(self, bundle: Path) -> list[tuple[bytes, Message]]:
        """Of the training's data."""
        files = [path.read_bytes() for path in sorted(publishing.TRASHNET.glob("*/*.jpg"))]
        return [(content, image_pb.Instance(image=content)) for content in files]

    def said_by_luthier(self, answer: bytes) -> Answer:
        """A class."""
        [prediction] = image_pb.ClassifyResponse.FromString(answer).predictions
        return {"label": [prediction.label], "score": np.array([prediction.score])}


@dataclass(frozen=True)
class Texts(TypedCase):
    """Questions to a bank."""

    kind = "text"
    raw_outputs = {"label": "BYTES", "score": "FP32"}
    method = "/luthier.tasks.text_classification.v1.TextClassificationService/Classify"

    def instances(self, bundle: Path) -> list[tuple[bytes, Message]]:
        """Of the test part."""
        with (publishing.BANKING / "test.csv").open(encoding="utf-8", newline="") as file:
            texts = [row["text"] for row in csv.DictReader(file)]
        return [(text.encode(), text_pb.Instance(text=text)) for text in texts]

    def said_by_luthier(self, answer: bytes) -> Answer:
        """A class."""
        [prediction] = text_pb.ClassifyResponse.FromString(answer).predictions
        return {"label": [prediction.label], "score": np.array([prediction.score])}


@dataclass(frozen=True)
class Users(TypedCase):
    """Users by their ids."""

    kind = "recommendation"
    raw_outputs = {"items": "BYTES", "scores": "FP32"}
    method = "/luthier.tasks.recommendation.v1.RecommendationService/Recommend"

    def instances(self, bundle: Path) -> list[tuple[bytes, Message]]:
        """All of the data."""
        with (publishing.MOVIES / "ratings.csv").open(encoding="utf-8", newline="") as file:
            users = sorted({row["userId"] for row in csv.DictReader(file)})
        return [(user.encode(), recommendation_pb.Instance(user=user)) for user in users]

    def said_by_luthier(self, answer: bytes) -> Answer:
        """Ten items."""
        [prediction] = recommendation_pb.RecommendResponse.FromString(answer).predictions
        return {
            "items": [item.item for item in prediction.items],
            "scores": np.array([item.score for item in prediction.items]),
        }


def tensor_request(model: str, arrays: Mapping[str, np.ndarray]) -> bytes:
    """A ModelInferRequest with raw contents."""
    request = oip.ModelInferRequest(model_name=model)
    for name, array in arrays.items():
        datatype, content = _DATATYPES[array.dtype.kind, array.dtype.itemsize], array.tobytes()
        if datatype == "BYTES":
            content = b"".join(len(value).to_bytes(4, "little") + value for value in array.flat)
        request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        request.raw_input_contents.append(content)
    return request.SerializeToString()


def read_tensors(answer: bytes) -> Answer:
    """The tensors of a ModelInferResponse, raw or typed, flat."""
    response = oip.ModelInferResponse.FromString(answer)
    raw = iter(response.raw_output_contents)
    found: dict[str, Any] = {}
    for output in response.outputs:
        if output.datatype == "BYTES":
            values = _split(next(raw)) if response.raw_output_contents else output.contents.bytes_contents
            found[output.name] = [value.decode() for value in values]
        elif response.raw_output_contents:
            found[output.name] = np.frombuffer(next(raw), np.float32)
        else:
            found[output.name] = np.array(output.contents.fp32_contents)
    return found


def differs(one: Answer, other: Answer) -> bool:
    """Whether two answers do not say the same, up to the last digits of their numbers."""
    if one.keys() != other.keys():
        return True
    texts = [name for name, value in one.items() if isinstance(value, list)]
    numbers = one.keys() - texts
    return any(one[name] != other[name] for name in texts) or not all(
        one[name].shape == other[name].shape and np.allclose(one[name], other[name], rtol=1e-3, atol=1e-4)
        for name in numbers
    )


def _split(content: bytes) -> Sequence[bytes]:
    values, start = [], 0
    while start < len(content):
        end = start + 4 + int.from_bytes(content[start : start + 4], "little")
        values.append(content[start + 4 : end])
        start = end
    return values


_DATATYPES = {("f", 4): "FP32", ("u", 1): "UINT8", ("O", 8): "BYTES"}
_SIDE = publishing.SIDE

CASES: tuple[Case, ...] = (
    TensorCase(
        id="float",
        title="float32 tensor of an image, 602 kB",
        model="float-images",
        over_triton=1.0,
        draw=lambda random: {"images": random.standard_normal((1, 3, _SIDE, _SIDE), np.float32)},
    ),
    TensorCase(
        id="uint8",
        title="uint8 tensor of an image, 151 kB",
        model="images",
        over_triton=1.2,
        draw=lambda random: {"images": random.integers(256, size=(1, _SIDE, _SIDE, 3), dtype=np.uint8)},
    ),
    TensorCase(
        id="mlp",
        title="16 numbers to a tiny MLP",
        model="mlp",
        over_triton=1.2,
        draw=lambda random: {"features": random.standard_normal((1, 16), np.float32)},
    ),
    Texts(
        id="text",
        title="string to label, MiniLM",
        model="texts",
        over_triton=1.5,
        task="text-classification",
    ),
    Texts(
        id="small-text",
        title="string to label, an encoder of a twentieth of MiniLM's size",
        model="small-texts",
        over_triton=1.5,
        task="text-classification",
    ),
    Jpegs(id="jpeg", title="JPEG to label", model="images", over_triton=1.5, task="image-classification"),
    Users(
        id="recommendation",
        title="user id to ten items",
        model="movies",
        over_triton=1.5,
        task="recommendation",
    ),
)
