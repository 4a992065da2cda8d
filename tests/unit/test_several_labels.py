"""Text classification where a text has any number of labels: what is read, learnt, served and scored."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

import tiny_bert
from luthier import fields
from luthier.errors import InvalidArgument, InvalidData
from luthier.inference.predictor import Predictor
from luthier.task import DataFile, Run
from luthier.tasks.text_classification.v1 import text_classification_pb2 as pb
from luthier.toolkit.text import Tokens
from luthier_text_classification import TextClassification, data, training

TASK = TextClassification()
WORDS = {
    "bitter": ["hop", "pine", "resin", "grapefruit"],
    "malty": ["caramel", "toast", "biscuit", "malt"],
    "sour": ["lemon", "funk", "tart", "vinegar"],
}
FILLING = ["a", "beer", "with", "foam", "tonight"]


def examples(count: int, seed: int) -> pa.Table:
    """Texts of none to three classes, each of which one word or two tell."""
    random = np.random.default_rng(seed)
    labels = [[name for name in WORDS if random.random() < 0.4] for _ in range(count)]
    texts = []
    for row in labels:
        words = [*random.choice(FILLING, random.integers(2, 6))]
        words += [word for name in row for word in random.choice(WORDS[name], random.integers(1, 3))]
        texts.append(" ".join(random.permutation(words)))
    return pa.table({"text": texts, "label": pa.array(labels, pa.list_(pa.string()))})


TRAIN, VALIDATION, TEST = examples(300, 1), examples(80, 2), examples(80, 3)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = [*FILLING, *(word for words in WORDS.values() for word in words)]
    return tiny_bert.write(tmp_path_factory.mktemp("base"), words)


def run_on(base: Path, folder: Path, **settings: Any) -> Run:
    config = pb.Config(max_length=24, learning_rate=0.003, head_learning_rate=0.02, **settings)
    fields.resolve(config)
    return Run(parts={"train": TRAIN, "validation": VALIDATION}, config=config, base=base, seed=0, directory=folder)


@pytest.fixture(scope="module")
def model(base: Path, tmp_path_factory: pytest.TempPathFactory) -> training.Model:
    return training.fine_tune(run_on(base, tmp_path_factory.mktemp("run"), epochs=6))


@pytest.fixture(scope="module")
def predictor(model: training.Model, tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    folder = tmp_path_factory.mktemp("bundle")
    training.export(model, folder)
    return Predictor(TASK, folder)


# Training and serving.


def test_each_label_is_learnt_by_itself(model: training.Model, predictor: Predictor) -> None:
    found = predictor.predict(TASK.instances(TEST))
    evaluation = TASK.score(TEST, found)
    assert evaluation.metrics["f1_micro"] > 0.97
    assert evaluation.metrics["accuracy"] > 0.9
    assert model.labels == ["bitter", "malty", "sour"]
    of_several = [one for one in found if len(one.labels) > 1]
    assert len(of_several) > 10
    for one in of_several:
        assert one.label == one.labels[0].label == one.top[0].label
        assert sum(entry.score for entry in one.labels) > 1
    nothing = [one for one in found if not one.labels]
    assert len(nothing) > 10
    assert all(one.score < model.threshold for one in nothing)


def test_the_bundle_predicts_what_pytorch_does(model: training.Model, predictor: Predictor) -> None:
    instances = [pb.Instance(text=text, top_k=2) for text in [*TEST["text"].to_pylist(), "", "hop " * 500]]
    for source, served in zip(training.predict(model, instances), predictor.predict(instances), strict=True):
        for field in ("top", "labels"):
            ours, theirs = getattr(source, field), getattr(served, field)
            assert [entry.label for entry in ours] == [entry.label for entry in theirs]
            assert [entry.score for entry in ours] == pytest.approx([entry.score for entry in theirs], abs=1e-5)
        assert len(served.top) == 2


def test_the_threshold_can_be_chosen(predictor: Predictor) -> None:
    text = "a pine beer with vinegar"
    every, none = predictor.predict([pb.Instance(text=text, threshold=0.0), pb.Instance(text=text, threshold=1.0)])
    assert [len(every.labels), len(none.labels)] == [3, 0]
    scores = [entry.score for entry in every.labels]
    assert scores == sorted(scores, reverse=True)
    with pytest.raises(InvalidArgument) as raised:
        predictor.predict([pb.Instance(text=text, threshold=0.5), pb.Instance(text=text, threshold=1.5)])
    assert raised.value.violations == {"instances[1].threshold": "1.5 is not between 0 and 1"}


def test_a_model_of_one_label_takes_no_threshold(base: Path, tmp_path: Path) -> None:
    run = run_on(base, tmp_path, epochs=0)
    one = [row[0] if row else "sour" for row in TRAIN["label"].to_pylist()]
    run.parts = {"train": pa.table({"text": TRAIN["text"], "label": one}), "validation": TRAIN.slice(0, 0)}
    model = training.fine_tune(run)
    assert not model.several
    training.export(model, tmp_path)
    predictor = Predictor(TASK, tmp_path)
    assert not predictor.predict([pb.Instance(text="hop")])[0].labels
    with pytest.raises(InvalidArgument, match="gives each text one class"):
        predictor.predict([pb.Instance(text="hop", threshold=0.5)])


def test_the_threshold_is_the_one_with_the_best_f1() -> None:
    probabilities = torch.tensor([[0.9, 0.2], [0.4, 0.3], [0.1, 0.35]])
    truth = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    fake: Any = SimpleNamespace(classifier=lambda ids, mask: probabilities.logit()[ids[:, 0]], device="cpu")
    tokens = Tokens([torch.tensor([i]) for i in range(3)], np.ones(3, dtype=np.int64), 0)
    # 0.9, 0.4 and 0.35 are right and 0.3 is not.
    assert training._best_threshold(fake, tokens, truth) == pytest.approx(0.325)


def test_the_untuned_base_tells_with_from_without(base: Path, tmp_path: Path) -> None:
    model = training.fine_tune(run_on(base, tmp_path, epochs=0))
    scores = TASK.score(TRAIN, training.predict(model, TASK.instances(TRAIN))).metrics
    every = sum(map(len, TRAIN["label"].to_pylist())) / (3 * TRAIN.num_rows)
    assert scores["f1_micro"] > 2 * every / (1 + every) + 0.1  # What giving every label to every text would reach.


# Scores.


def given(*labels: str) -> pb.Prediction:
    entries = [pb.ClassScore(label=label, score=0.9) for label in labels]
    return pb.Prediction(label="a", score=0.9, top=entries[:1], labels=entries)


def test_scores() -> None:
    truth = pa.table({"text": ["1", "2", "3", "4"], "label": [["a", "b"], ["a"], [], ["c"]]})
    evaluation = TASK.score(truth, [given("a"), given("a", "b"), given(), given("c")])
    assert evaluation.num_examples == 4
    assert evaluation.metrics == pytest.approx(
        {
            "accuracy": 0.5,
            "precision_micro": 3 / 4,
            "recall_micro": 3 / 4,
            "f1_micro": 3 / 4,
            "precision_macro": 2 / 3,
            "recall_macro": 2 / 3,
            "f1_macro": 2 / 3,
            "f1_weighted": 3 / 4,
        }
    )
    assert [(entry.label, entry.support, entry.metrics["f1"]) for entry in evaluation.per_class] == [
        ("a", 2, 1.0),
        ("b", 1, 0.0),
        ("c", 1, 1.0),
    ]
    assert evaluation.curves[0].label.startswith("all classes")
    assert not evaluation.HasField("confusion_matrix")
    assert TASK.grades(truth, [given("a"), given("a", "b"), given(), given("b")]) == pytest.approx([2 / 3, 2 / 3, 1, 0])


# Data.


def read(folder: Path, name: str, content: str, columns: dict[str, str] | None = None, **options: str) -> pa.Table:
    (folder / name).write_text(content, encoding="utf-8")
    format = name.rpartition(".")[2]
    chosen = {"labels": "several", "separator": ","} | options
    return TASK.read(DataFile(path=folder / name, name=name, format=format, columns=columns or {}, options=chosen))


EXPECTED = [["a", "b"], [], ["b"]]


def test_lists_cells_and_columns_are_read_alike(tmp_path: Path) -> None:
    lines = [{"text": str(i), "label": row} for i, row in enumerate(EXPECTED)]
    tables = [
        read(tmp_path, "a.jsonl", "\n".join(map(json.dumps, lines))),
        read(tmp_path, "a.csv", 'text,label\n0,"a, b"\n1,\n2,"b,b,"\n'),
        read(tmp_path, "b.csv", "text,tags\n0,a;b\n1,\n2,b\n", {"label": "tags"}, separator=";"),
        read(tmp_path, "c.csv", "text,a,b\n0,1,1\n1,0,0\n2,false,true\n", {"label": "a, b"}),
    ]
    for table in tables:
        assert table["label"].to_pylist() == EXPECTED
        assert table.schema == tables[0].schema
        assert data.several(table)


@pytest.mark.parametrize(
    ("content", "columns", "options", "words"),
    [
        ("text\n0\n", {}, {}, "no column `label`"),
        ("text,a\n0,1\n", {"label": "a,b"}, {}, "no column `b`"),
        ("text,a,b\n0,1,2\n", {"label": "a,b"}, {}, "`2` is not true, false, 1 or 0"),
        ("text,label\n,a\n", {}, {}, "row 1:text"),
        ("text,label\n0,\n", {}, {"labels": "one"}, "row 1:label"),
    ],
)
def test_what_cannot_be_read_is_named(
    tmp_path: Path, content: str, columns: dict[str, str], options: dict[str, str], words: str
) -> None:
    with pytest.raises(InvalidData) as raised:
        read(tmp_path, "a.csv", content, columns, **options)
    assert words in str(raised.value)


def test_problems_and_statistics() -> None:
    def part(*rows: tuple[str, list[str]]) -> pa.Table:
        texts, labels = [text for text, _ in rows], [row for _, row in rows]
        return pa.table({"text": pa.array(texts, pa.string()), "label": pa.array(labels, pa.list_(pa.string()))})

    good = part(("1", ["a"]), ("2", []), ("3", ["a", "b"]), ("4", ["b"]))
    assert list(TASK.validate({"train": good, "validation": part(), "test": part(("5", ["b", "a"]))})) == []
    told = [problem.message for _, problem in TASK.validate({"train": part(("1", [])), "test": part(("1", ["z"]))})]
    assert told[0] == "train has 0 classes (); at least 1 are needed"
    assert "test has classes that train lacks: `z`" in told[1]
    assert told[2] == "1 texts are labelled in more than one way: `1`"
    found = TASK.describe({"train": good, "test": part()})
    assert found["classes"] == [{"label": "a", "train": 2, "test": 0}, {"label": "b", "train": 2, "test": 0}]
    assert found["labels_of_a_text"]["max"] == 2
