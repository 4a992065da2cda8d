"""Entity recognition: finds spans of text and their types. Any encoder of the Hugging Face library is a base."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier import facts
from luthier.hookspecs import hookimpl
from luthier.task import Codec, DataFile, DataProblem, Evaluation, Picture, Split, Task, Trainer
from luthier.tasks.entity_recognition.v1 import entity_recognition_pb2 as pb

if TYPE_CHECKING:
    import pyarrow as pa
    from google.protobuf.message import Message


class EntityRecognition(Task):
    """The task `entity-recognition`."""

    id = "entity-recognition"
    title = "Entity recognition"
    description = "Finds entities in texts, each with its type and its place in characters."
    service = pb.DESCRIPTOR.services_by_name["EntityRecognitionService"]
    config = pb.Config
    example = pb.Example
    primary_metric = "f1"
    bases = ("minilm-l6",)
    goes_on = True
    formats = ("jsonl", "parquet", "conll", "iob", "iob2", "bio", "tsv", "txt", "annotated")
    """All but the first two are CoNLL columns under the names that such files end in."""

    def read(self, file: DataFile) -> pa.Table:
        """Reads character spans from JSONL and Parquet, or CoNLL columns."""
        from luthier_entity_recognition import conll, examples

        return (examples if file.format in ("jsonl", "parquet") else conll).read(file)

    def split(self, examples: pa.Table, split: Split) -> dict[str, pa.Table]:
        """Divides by a hash of the text alone, so that a text never occurs in two parts, whatever its entities."""
        from luthier import tabular

        return tabular.split_by_hash(examples, split, key=("text",))

    def validate(self, parts: Mapping[str, pa.Table]) -> Iterable[tuple[bool, DataProblem]]:
        """Looks for empty texts, labels that cannot be learned, borders within words, texts that contradict or leak."""
        from luthier_entity_recognition import data

        return data.problems(parts)

    def describe(self, parts: Mapping[str, pa.Table]) -> dict[str, Any]:
        """Counts the entities and measures the texts."""
        from luthier_entity_recognition import data

        return data.statistics(parts)

    def trainer(self) -> Trainer:
        """PyTorch and transformers."""
        from luthier_entity_recognition import training

        return training

    def open(self, directory: Path) -> Codec:
        """The tokenizer and the labels of a bundle."""
        from luthier_entity_recognition.codec import EntityRecognitionCodec

        return EntityRecognitionCodec(directory)

    def instances(self, examples: pa.Table) -> list[Message]:
        """The texts."""
        return [pb.Instance(text=text) for text in examples["text"].to_pylist()]

    def render(self, instance: Any, prediction: Any) -> Picture:
        """The text with its entities in colour, as SVG."""
        from luthier_entity_recognition import pictures

        return pictures.draw(instance.text, prediction.entities)

    def score(self, examples: pa.Table, predictions: Sequence[Any]) -> Evaluation:
        """Precision, recall and F1 of entities, of all and by label, by seqeval's strict rule."""
        from luthier_entity_recognition import metrics
        from luthier_entity_recognition.examples import entities_of

        found = [[(one.start, one.end, one.label) for one in prediction.entities] for prediction in predictions]
        scores = [[one.score for one in prediction.entities] for prediction in predictions]
        return metrics.score(entities_of(examples), found, scores)

    def features(self, instance: Any, prediction: Any) -> dict[str, float | str | Sequence[str]]:
        """What the text looks like, and its entities: how many to a hundred characters, of which types, and how sure.

        A request that leaves doubtful entities out says nothing of entities.
        """
        found: dict[str, float | str | Sequence[str]] = {}
        if instance is not None:
            found.update(facts.of_text(instance.text))
            if instance.min_score:
                return found
            found["density"] = 100 * len(prediction.entities) / max(len(instance.text), 1)
        found["entities"] = float(len(prediction.entities))
        if prediction.entities:
            found["types"] = "+".join(sorted({entity.label for entity in prediction.entities}))
            found["score"] = sum(entity.score for entity in prediction.entities) / len(prediction.entities)
        return found

    def grades(self, examples: pa.Table, predictions: Sequence[Any]) -> list[float]:
        """F1 of each text alone; 1 where there is rightly no entity."""
        from luthier_entity_recognition import metrics
        from luthier_entity_recognition.examples import entities_of

        found = [[(one.start, one.end, one.label) for one in prediction.entities] for prediction in predictions]
        return [metrics.grade(one, other) for one, other in zip(entities_of(examples), found, strict=True)]


@hookimpl
def luthier_tasks() -> list[Task]:
    """Brings the task."""
    return [EntityRecognition()]
