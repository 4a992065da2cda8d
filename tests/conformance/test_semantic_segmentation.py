from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw

import tiny_timm
from luthier import images
from luthier.tasks.semantic_segmentation.v1 import semantic_segmentation_pb2 as pb
from luthier.testing import TaskConformance
from luthier_semantic_segmentation import SemanticSegmentation
from luthier_semantic_segmentation.rows import SCHEMA

LABELS = ["meadow", "pond", "barn"]
COLOURS = {0: (90, 160, 70), 1: (60, 90, 200), 2: (190, 60, 50)}


def scene(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A noisy drawing, uint8 [48, 64, 3], and its mask with the values 10, 11, 12, and 255 along one edge."""
    image, mask = Image.new("RGB", (64, 48), COLOURS[0]), Image.new("L", (64, 48), 10)
    x, y = random.integers(0, 30), random.integers(0, 20)
    box = (int(x), int(y), int(x + random.integers(15, 30)), int(y + random.integers(12, 26)))
    ImageDraw.Draw(image).ellipse(box, fill=COLOURS[1])
    ImageDraw.Draw(mask).ellipse(box, fill=11)
    x, y = random.integers(30, 50), random.integers(10, 30)
    box = (int(x), int(y), int(x + random.integers(8, 14)), int(y + random.integers(8, 16)))
    ImageDraw.Draw(image).rectangle(box, fill=COLOURS[2])
    ImageDraw.Draw(mask).rectangle(box, fill=12)
    values = np.array(mask)
    values[:, 0] = 255
    noisy = np.asarray(image).astype(int) + random.integers(-20, 20, (48, 64, 3))
    return noisy.clip(0, 255).astype(np.uint8), values


def scenes(seed: int, count: int) -> pa.Table:
    random = np.random.default_rng(seed)
    drawn = [scene(random) for _ in range(count)]
    return pa.table(
        {
            "image": [images.encode_png(image) for image, _ in drawn],
            "mask": [images.encode_png(mask) for _, mask in drawn],
            "values": [[10, 11, 12]] * count,
            "labels": [LABELS] * count,
            "name": [f"images/{seed}-{i}.png" for i in range(count)],
        },
        SCHEMA,
    )


def blank(height: int, width: int) -> bytes:
    return images.encode_png(np.full((height, width, 3), 120, dtype=np.uint8))


class TestSemanticSegmentation(TaskConformance):
    task = SemanticSegmentation()
    config = pb.Config(epochs=10, batch_size=4, learning_rate=0.005, head_learning_rate=0.01, head_channels=16)
    loss = None
    trivial_score = 0.4
    """All meadow is about 0.25."""
    invalid_instances = (
        (pb.Instance(image=b"GIF89a"), "image"),
        (pb.Instance(), "image"),
        (pb.Instance(image=blank(8, 8)[:40]), "image"),
        (pb.Instance(image=blank(8, 8), format=9), "format"),
    )
    edge_cases = (
        pb.Instance(image=blank(1, 1)),
        pb.Instance(image=blank(3, 200)),
        pb.Instance(image=blank(301, 5), format=pb.MASK_FORMAT_PNG),
        pb.Instance(image=scenes(9, 1)["image"][0].as_py(), format=pb.MASK_FORMAT_PNG),
    )

    @classmethod
    def base(cls, directory: Path) -> Path:
        return tiny_timm.write(directory)

    @classmethod
    def parts(cls) -> Mapping[str, pa.Table]:
        return {"train": scenes(1, 16), "validation": scenes(2, 4), "test": scenes(3, 5)}
