from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

import tiny_timm
from luthier import images
from luthier.tasks.image_classification.v1 import image_classification_pb2 as pb
from luthier.testing import TaskConformance
from luthier_image_classification import ImageClassification

COLOURS = {"red": (200, 60, 60), "green": (60, 180, 60), "blue": (60, 60, 200)}


def photograph(colour: tuple[int, int, int], random: np.random.Generator) -> bytes:
    """A disc of about the colour on noise, of a size that differs from image to image."""
    height, width = random.integers(40, 90, 2)
    image = random.integers(90, 166, (height, width, 3))
    y, x = np.ogrid[:height, :width]
    disc = (y - height / 2) ** 2 + (x - width / 2) ** 2 < (min(height, width) * random.uniform(0.25, 0.45)) ** 2
    image[disc] = np.array(colour) + random.integers(-40, 41, (disc.sum(), 3))
    return images.encode_png(image.astype(np.uint8))


def photographs(seed: int, count: int) -> pa.Table:
    random = np.random.default_rng(seed)
    labels = [list(COLOURS)[i % 3] for i in range(count)]
    encoded = [photograph(COLOURS[label], random) for label in labels]
    return pa.table(
        {"image": pa.array(encoded, pa.large_binary()), "label": labels, "name": [f"{i}.png" for i in range(count)]}
    )


BLANK = images.encode_png(np.full((33, 47, 3), 255, dtype=np.uint8))
ONE_PIXEL = images.encode_png(np.zeros((1, 1), dtype=np.uint8))
LONG = images.encode_png(np.zeros((3, 2000, 3), dtype=np.uint8))


class TestImageClassification(TaskConformance):
    task = ImageClassification()
    config = pb.Config(epochs=6, batch_size=16, learning_rate=0.005, head_learning_rate=0.01, image_size=64)
    loss = "validation/loss"
    """The training loss is reported by the clock, five times a second, and so once in a run as short as this."""
    invalid_instances = (
        (pb.Instance(image=BLANK, top_k=-1), "top_k"),
        (pb.Instance(), "image"),
        (pb.Instance(image=b"GIF89a and no more"), "image"),
        (pb.Instance(image=BLANK[: len(BLANK) // 2]), "image"),
    )
    edge_cases = (
        pb.Instance(image=BLANK),
        pb.Instance(image=ONE_PIXEL),
        pb.Instance(image=LONG, top_k=2),
        pb.Instance(image=BLANK, top_k=99),
    )
    trivial_score = 0.5
    """Three classes of one size: chance is a third."""

    @classmethod
    def base(cls, directory: Path) -> Path:
        return tiny_timm.write(directory)

    @classmethod
    def parts(cls) -> Mapping[str, pa.Table]:
        return {"train": photographs(1, 96), "validation": photographs(2, 24), "test": photographs(3, 24)}
