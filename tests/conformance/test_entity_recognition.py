import random
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

import tiny_bert
from luthier.tasks.entity_recognition.v1 import entity_recognition_pb2 as pb
from luthier.testing import TaskConformance
from luthier_entity_recognition import EntityRecognition
from luthier_entity_recognition.examples import Example, table_of

NAMES = {
    "brewer": (["anna", "bruno", "clara", "dora"], ["berg", "holm", "lind"]),
    "town": (["lund", "malmo", "york", "ghent"], ["north", "south", "harbour"]),
}
"""First words, and second ones that half of the names have."""
FILLING = ["a", "beer", "from", "the", "with", "malt", "and", "hops", "tonight", "by"]


def sentences(seed: int, count: int) -> pa.Table:
    """Texts of 4 to 20 words with up to three entities of one or two words."""
    draw = random.Random(seed)
    return table_of(_sentence(draw) for _ in range(count))


def _sentence(draw: random.Random) -> Example:
    text, entities = "", []
    for _ in range(draw.randint(1, 3)):
        text += " ".join(draw.choices(FILLING, k=draw.randint(2, 5))) + " "
        label = draw.choice(list(NAMES))
        name = " ".join(draw.choice(words) for words in NAMES[label][: draw.randint(1, 2)])
        entities.append((len(text), len(text) + len(name), label))
        text += f"{name}, "
    return text + "tonight", entities


class TestEntityRecognition(TaskConformance):
    task = EntityRecognition()
    config = pb.Config(epochs=4, batch_size=16, learning_rate=0.005, head_learning_rate=0.02, max_length=24)
    loss = "validation/loss"
    """The training loss is reported by the clock, five times a second, and so once in a run as short as this."""
    invalid_instances = (
        (pb.Instance(text="a beer", min_score=-0.1), "min_score"),
        (pb.Instance(text="a beer", min_score=1.5), "min_score"),
        (pb.Instance(text="a beer", min_score=float("nan")), "min_score"),
    )
    edge_cases = (
        pb.Instance(text=""),
        pb.Instance(text="  \n\t"),
        pb.Instance(text="\x01\u200d"),
        pb.Instance(text="a beer by anna from lund " * 300),
        pb.Instance(text="пиво by ANNA 🍺\u200d🍺 من porto 啤酒 malmo\u0308"),
        pb.Instance(text="a beer from york", min_score=1.0),
    )
    trivial_score = 0.9
    """Each word tells its own tag."""

    @classmethod
    def base(cls, directory: Path) -> Path:
        return tiny_bert.write(
            directory, [*FILLING, ",", *(word for first, second in NAMES.values() for word in first + second)]
        )

    @classmethod
    def parts(cls) -> Mapping[str, pa.Table]:
        return {"train": sentences(1, 96), "validation": sentences(2, 24), "test": sentences(3, 24)}
