"""The real data sets that Luthier's quality is measured on, and what others reached there."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from luthier.task import DataFile, Task
from luthier.v1.dataset_pb2 import Split
from luthier_client import transfer

MINILM, MOBILENET = "minilm-l6", "mobilenet_v2"
"""The bases: of the catalogue, and of `mobilenet_v2_in1k_fp16.safetensors` by `luthier bases import`."""


@dataclass(frozen=True)
class Peer:
    """A metric, what a plain loop written by hand reached in it with one seed, and what Luthier must reach."""

    metric: str
    reached: float
    limit: float


@dataclass(frozen=True)
class Case:
    """A data set with the base that is tuned on it, by the task's defaults."""

    id: str
    task: str
    base: str
    folder: str
    """Within the data sets' folder."""
    peers: tuple[Peer, ...]
    """The first one's metric is compared with the random start."""
    note: str
    """What the data are and how they are divided."""
    files: Mapping[str, str] = field(default_factory=dict)
    """File of the folder by role; none: the whole folder as an archive."""
    columns: Mapping[str, str] = field(default_factory=dict)
    header: bool = True
    split: Split = field(default_factory=Split)
    folds: int = 1
    """Where more than one, every example is tested once: fold k of a class folder holds the files whose SHA-256 leaves
    k when divided by their number."""
    other: Mapping[str, object] = field(default_factory=lambda: {"from_scratch": True})
    """Config of what the tuned model is compared with."""


CASES = (
    Case(
        id="trashnet",
        task="image-classification",
        base=MOBILENET,
        folder="cls-trashnet60",
        peers=(Peer("accuracy", 0.736, 0.71),),
        note="360 photographs of rubbish, 6 classes; five folds by hash, pooled",
        folds=5,
    ),
    Case(
        id="bccd",
        task="object-detection",
        base=MOBILENET,
        folder="det-bccd-voc",
        peers=(Peer("map_50", 0.872, 0.86), Peer("map", 0.542, 0.53)),
        note="364 blood smears, 3 kinds of cells; parts as published",
    ),
    Case(
        id="pets",
        task="semantic-segmentation",
        base=MOBILENET,
        folder="seg-cls-det-pets3",
        peers=(Peer("miou", 0.711, 0.70),),
        note="180 cats and dogs, trimaps of 3 classes; a tenth by hash is the test part",
    ),
    Case(
        id="ncbi-disease",
        task="entity-recognition",
        base=MINILM,
        folder="ner-ncbi-disease",
        peers=(Peer("f1", 0.811, 0.80),),
        note="mentions of diseases in abstracts; parts as published",
        files={"train": "train.tsv", "validation": "devel.tsv", "test": "test.tsv"},
    ),
    Case(
        id="wnut17",
        task="entity-recognition",
        base=MINILM,
        folder="ner-wnut17",
        peers=(Peer("f1", 0.411, 0.411),),
        note="emerging names in posts, 6 types; parts as published",
        files={
            "train": "wnut17train.conll",
            "validation": "emerging.dev.conll",
            "test": "emerging.test.annotated",
        },
    ),
    Case(
        id="banking77",
        task="text-classification",
        base=MINILM,
        folder="text-banking77",
        peers=(Peer("accuracy", 0.938, 0.93),),
        note="questions to a bank, 77 intents; parts as published",
        files={"train": "train.csv", "test": "test.csv"},
        columns={"label": "category"},
    ),
    Case(
        id="sms-spam",
        task="text-classification",
        base=MINILM,
        folder="text-sms-spam",
        peers=(Peer("f1_macro", 0.974, 0.965),),
        note="messages, ham or spam; a tenth by hash is the test part, without duplicates of train",
        files={"": "sms.tsv"},
        columns={"label": "0", "text": "1"},
        header=False,
    ),
    Case(
        id="movielens",
        task="recommendation",
        base="",
        folder="recsys-ml-latest-small",
        peers=(Peer("ndcg_at_10", 0.378, 0.37),),
        note="100,004 ratings of films, each a positive; a quarter of each user's is the test part",
        files={"": "ratings.csv", "titles": "movies.csv"},
        columns={"user": "userId", "item": "movieId", "weight": "rating", "time": "timestamp"},
        split=Split(method="per-user", fractions=[0.25], seed=42),
        other={"algorithm": "ALGORITHM_POPULARITY"},
    ),
)


def data_files(case: Case, task: Task, folder: Path, scratch: Path, fold: int) -> list[DataFile]:
    """The case's files for the task to read; what has to be packed goes into `scratch`."""
    options = {name: option.default for name, option in task.read_options.items()}
    source = folder / case.folder
    if not case.files:
        if case.folds > 1:
            source = _folds(source, scratch / case.folder, case.folds, fold)
        with transfer.as_file(source) as packed:
            path = Path(shutil.copy(packed, scratch))
        return [DataFile(path=path, name=path.name, format="", options=options)]
    return [
        DataFile(
            path=source / name,
            name=name,
            # As the server does it: the ending says the format.
            format=name.rpartition(".")[2],
            role=role,
            columns=case.columns,
            header=case.header,
            options=options,
        )
        for role, name in case.files.items()
    ]


def _folds(source: Path, target: Path, folds: int, fold: int) -> Path:
    """A copy of a folder of classes, divided into train and test by the hash of each file."""
    for path in sorted(source.glob("*/*")):
        part = "test" if int(hashlib.sha256(path.read_bytes()).hexdigest(), 16) % folds == fold else "train"
        copy = target / part / path.parent.name / path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    return target
