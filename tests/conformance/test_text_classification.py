import random
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

import tiny_bert
from luthier.tasks.text_classification.v1 import text_classification_pb2 as pb
from luthier.testing import TaskConformance
from luthier_text_classification import TextClassification

TELLING = {
    "praise": ["crisp", "bright", "lovely", "balanced"],
    "blame": ["flat", "sour", "stale", "watery"],
    "doubt": ["odd", "unsure", "mixed", "perhaps"],
}
FILLING = ["a", "beer", "from", "the", "north", "with", "malt", "and", "hops", "tonight"]


def reviews(seed: int, count: int) -> pa.Table:
    """Texts of 4 to 20 words, one or two of which tell the class."""
    draw = random.Random(seed)
    labels = [list(TELLING)[i % 3] for i in range(count)]
    texts = []
    for label in labels:
        words = draw.choices(FILLING, k=draw.randint(3, 18)) + draw.choices(TELLING[label], k=draw.randint(1, 2))
        draw.shuffle(words)
        texts.append(" ".join(words))
    return pa.table({"text": texts, "label": labels})


def remarks(seed: int, count: int) -> pa.Table:
    """Texts with none to three labels, each told by two words or more."""
    draw = random.Random(seed)
    texts, labels = [], []
    for _ in range(count):
        labels.append([label for label in TELLING if draw.random() < 0.4])
        words = draw.choices(FILLING, k=draw.randint(2, 8))
        words += [word for label in labels[-1] for word in draw.choices(TELLING[label], k=draw.randint(2, 3))]
        draw.shuffle(words)
        texts.append(" ".join(words))
    return pa.table({"text": texts, "label": pa.array(labels, pa.list_(pa.string()))})


class TestTextClassification(TaskConformance):
    task = TextClassification()
    config = pb.Config(epochs=6, batch_size=16, learning_rate=0.005, head_learning_rate=0.02, max_length=32)
    loss = "validation/loss"
    """The training loss is reported by the clock, five times a second, and so once in a run as short as this."""
    invalid_instances = ((pb.Instance(text="a flat beer", top_k=-1), "top_k"),)
    edge_cases = (
        pb.Instance(text=""),
        pb.Instance(text="  \n\t"),
        pb.Instance(text="crisp " * 500),
        pb.Instance(text="светлое пиво 🍺 وبيرة 啤酒"),
        pb.Instance(text="a lovely beer", top_k=2),
        pb.Instance(text="a lovely beer", top_k=99),
    )
    trivial_score = 0.5
    """Three classes of one size: chance is a third."""

    @classmethod
    def base(cls, directory: Path) -> Path:
        return tiny_bert.write(directory, [*FILLING, *(word for words in TELLING.values() for word in words)])

    @classmethod
    def parts(cls) -> Mapping[str, pa.Table]:
        return {"train": reviews(1, 96), "validation": reviews(2, 24), "test": reviews(3, 24)}


class TestTextsWithSeveralLabels(TestTextClassification):
    invalid_instances = (
        (pb.Instance(text="a flat beer", top_k=-1), "top_k"),
        (pb.Instance(text="a flat beer", threshold=1.01), "threshold"),
    )
    edge_cases = (
        *TestTextClassification.edge_cases,
        pb.Instance(text="a lovely beer, if sour", threshold=0.0),
        pb.Instance(text="a lovely beer, if sour", threshold=1.0),
    )
    trivial_score = 0.3
    """The share of texts whose labels are all right; a fifth of them have none."""

    @classmethod
    def parts(cls) -> Mapping[str, pa.Table]:
        return {"train": remarks(1, 192), "validation": remarks(2, 48), "test": remarks(3, 48)}
