"""The plugin for text classification, on a tiny random BERT that is made here: no test needs a network."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from transformers import BertModel, PreTrainedTokenizerFast

import tiny_bert
from luthier import fields
from luthier.distribution import spread
from luthier.errors import Cancelled, InvalidArgument
from luthier.inference.predictor import Predictor
from luthier.task import Run, Split
from luthier.tasks.text_classification.v1 import text_classification_pb2 as pb
from luthier.toolkit import progress
from luthier.v1.training_pb2 import Precision
from luthier_text_classification import TextClassification, training

TASK = TextClassification()
WORDS = {
    "bitter": ["hop", "pine", "resin", "grapefruit", "bitter", "dry"],
    "malty": ["caramel", "toast", "biscuit", "malt", "sweet", "nutty"],
    "sour": ["lemon", "funk", "tart", "vinegar", "cherry", "acid"],
}
MAX_LENGTH = 24
SETTINGS = {"epochs": 3, "max_length": MAX_LENGTH, "learning_rate": 0.002, "head_learning_rate": 0.01}
STRANGE = ["", " \n\t", "hop " * 5000, "Ὀδυσσεύς", "苦いビール", "بيرة", "🍺" * 40, "e\u0301\u200d\ufeff", "\x01"]


def examples(count: int, seed: int) -> pa.Table:
    """Texts of two to ten words of one class."""
    random = np.random.default_rng(seed)
    labels = [sorted(WORDS)[i % 3] for i in range(count)]
    texts = [" ".join(random.choice(WORDS[label], random.integers(2, 11))) for label in labels]
    return pa.table({"text": texts, "label": labels})


TRAIN, VALIDATION, TEST = examples(150, 1), examples(30, 2), examples(30, 3)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random BERT that knows the words above."""
    return tiny_bert.write(tmp_path_factory.mktemp("base"), (word for words in WORDS.values() for word in words))


@pytest.fixture
def make_run(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    """Makes a run whose every step is reported."""
    monkeypatch.setattr(progress, "INTERVAL_S", 0.0)

    def make(*, validation: pa.Table = VALIDATION, seed: int = 0, **settings: Any) -> Run:
        config = resolved(**(SETTINGS | settings))
        parts = {"train": TRAIN, "validation": validation}
        return Run(parts=parts, config=config, base=base, seed=seed, directory=tmp_path, emit=[].append)

    return make


def resolved(**settings: Any) -> pb.Config:
    config = pb.Config(**settings)
    fields.resolve(config)
    return config


def curve(run: Run, name: str) -> list[float]:
    """The values of a metric in the order they were reported."""
    events: list[dict[str, Any]] = run.emit.__self__  # type: ignore[attr-defined]
    values = (event["metrics"]["values"] for event in events if "metrics" in event)
    return [value[name] for value in values if name in value]


@pytest.fixture(scope="module")
def model(base: Path, tmp_path_factory: pytest.TempPathFactory) -> training.Model:
    parts = {"train": TRAIN, "validation": VALIDATION}
    folder = tmp_path_factory.mktemp("run")
    return training.fine_tune(Run(parts=parts, config=resolved(**SETTINGS), base=base, seed=0, directory=folder))


@pytest.fixture(scope="module")
def bundle(model: training.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    training.export(model, folder)
    return folder


@pytest.fixture(scope="module")
def predictor(bundle: Path) -> Predictor:
    return Predictor(TASK, bundle)


# Training.


def test_the_loss_falls_and_the_classes_are_learned(make_run: Callable[..., Run]) -> None:
    run = make_run()
    model = training.fine_tune(run)
    losses = curve(run, "loss")
    assert len(losses) == run.figures["steps"] == 15
    assert losses[0] > 0.9
    assert losses[-1] < 0.3
    assert curve(run, "validation/accuracy")[-1] == 1.0
    assert run.figures["epochs_run"] == 3
    assert run.figures["examples_per_s"] > 0
    scores = TASK.score(TEST, training.predict(model, TASK.instances(TEST)))
    assert scores.metrics["accuracy"] == 1.0


def test_the_seed_fixes_the_weights_bit_by_bit(make_run: Callable[..., Run]) -> None:
    first, again, other = (training.fine_tune(make_run(seed=seed)).classifier.state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_the_best_epoch_is_kept_and_patience_ends_the_training(make_run: Callable[..., Run]) -> None:
    # Validation labels are shuffled: nothing can be learned for them, so some epoch is the best and others follow it.
    wrong = VALIDATION.set_column(1, "label", VALIDATION["label"].take(np.random.default_rng(0).permutation(30)))
    run = make_run(validation=wrong, epochs=40, patience=2)
    model = training.fine_tune(run)
    accuracies = curve(run, "validation/accuracy")
    best = max(accuracies)
    assert run.figures["epochs_run"] == accuracies.index(best) + 1 + 2 == len(accuracies) < 40
    kept = TASK.score(wrong, training.predict(model, TASK.instances(wrong))).metrics["accuracy"]
    assert kept == accuracies[int(run.figures["best_epoch"]) - 1]
    # The last that is not clearly below the best: 30 texts tell little apart.
    error = math.sqrt(2 * best * (1 - best) / 30)
    assert run.figures["best_epoch"] == max(n for n, a in enumerate(accuracies, 1) if a >= best - error)


def test_without_validation_every_epoch_is_trained(make_run: Callable[..., Run]) -> None:
    run = make_run(validation=VALIDATION.slice(0, 0), epochs=4, patience=1)
    training.fine_tune(run)
    assert run.figures["epochs_run"] == run.figures["best_epoch"] == 4
    assert curve(run, "validation/accuracy") == []


def test_no_epochs_give_the_nearest_centroid_by_cosine(make_run: Callable[..., Run]) -> None:
    run = make_run(epochs=0)
    model = training.fine_tune(run)

    def embeddings(table: pa.Table) -> torch.Tensor:
        encoded = model.tokenizer(table["text"].to_pylist(), padding=True, return_tensors="pt")
        with torch.inference_mode():
            embedded = model.classifier.embed(encoded.input_ids, encoded.attention_mask)
        return torch.nn.functional.normalize(embedded)

    of_train = embeddings(TRAIN)
    rows = [torch.tensor([label == name for label in TRAIN["label"].to_pylist()]) for name in model.labels]
    centroids = torch.nn.functional.normalize(torch.stack([of_train[row].mean(0) for row in rows]))
    nearest = [model.labels[i] for i in (embeddings(TEST) @ centroids.T).argmax(1)]
    assert [prediction.label for prediction in training.predict(model, TASK.instances(TEST))] == nearest
    assert len(curve(run, "validation/accuracy")) == 1
    assert run.figures["steps"] == run.figures["epochs_run"] == 0


def test_bfloat16_learns_the_same(make_run: Callable[..., Run]) -> None:
    run = make_run(precision=Precision.PRECISION_BFLOAT16)
    training.fine_tune(run)
    assert curve(run, "validation/accuracy")[-1] == 1.0


def test_a_cancelled_run_ends(make_run: Callable[..., Run]) -> None:
    run = make_run(epochs=1000)
    run.cancelled = lambda: len(curve(run, "loss")) >= 3
    with pytest.raises(Cancelled):
        training.fine_tune(run)
    assert len(curve(run, "loss")) == 3


def test_what_does_not_suit_is_named(make_run: Callable[..., Run], base: Path) -> None:
    with pytest.raises(InvalidArgument, match="more than the 64 tokens") as too_long:
        training.fine_tune(make_run(max_length=65))
    assert list(too_long.value.violations) == ["config.max_length"]
    for settings, field, why in (
        ({}, "base", "keeps no weights to go on from"),
        ({"from_scratch": True}, "config.from_scratch", "not to begin anew"),
        ({"epochs": 0}, "config.epochs", "at least 1"),
    ):
        warm = make_run(**settings)
        warm.warm_start = True
        with pytest.raises(InvalidArgument, match=why) as refused:
            training.fine_tune(warm)
        assert list(refused.value.violations) == [field]


def later(bundle: Path, train: pa.Table, directory: Path, **settings: Any) -> training.Model:
    """Goes on from the version in a bundle."""
    parts, config = {"train": train, "validation": train.slice(0, 0)}, resolved(**(SETTINGS | settings))
    return training.fine_tune(
        Run(parts=parts, config=config, base=bundle, warm_start=True, seed=1, directory=directory)
    )


def test_a_later_version_goes_on_from_where_the_earlier_one_stood(
    bundle: Path, predictor: Predictor, tmp_path: Path
) -> None:
    """Without learning it predicts the same, but for what 16 bits round off, and keeps the class it sees no more."""
    two = TRAIN.filter(pc.not_equal(TRAIN["label"], "sour"))
    model = later(bundle, two, tmp_path, epochs=1, learning_rate=0, head_learning_rate=0)
    instances = [pb.Instance(text=text, top_k=3) for text in TEST["text"].to_pylist()]
    for ours, theirs in zip(training.predict(model, instances), predictor.predict(instances), strict=True):
        assert {entry.label for entry in ours.top} == {*WORDS}
        assert {e.label: e.score for e in ours.top} == pytest.approx({e.label: e.score for e in theirs.top}, abs=2e-3)


def test_a_later_version_admits_classes_and_learns_them_sooner(bundle: Path, base: Path, tmp_path: Path) -> None:
    smoky = pa.table({"text": ["oak smoke", "smoke oak peat", "smoke"] * 20, "label": ["smoky"] * 60})
    train = pa.concat_tables([TRAIN, smoky])
    gentle = {"epochs": 1, "learning_rate": 0.0005, "head_learning_rate": 0.02}
    warm = later(bundle, train, tmp_path / "warm", **gentle)
    assert warm.labels == ["bitter", "malty", "smoky", "sour"]
    parts, config = {"train": train, "validation": train.slice(0, 0)}, resolved(**(SETTINGS | gentle))
    cold = training.fine_tune(Run(parts=parts, config=config, base=base, seed=1, directory=tmp_path / "cold"))
    texts, labels = [*TEST["text"].to_pylist(), "oak smoke"], [*TEST["label"].to_pylist(), "smoky"]
    instances = [pb.Instance(text=each) for each in texts]
    found = [[prediction.label for prediction in training.predict(model, instances)] for model in (warm, cold)]
    right = [sum(map(str.__eq__, each, labels)) for each in found]
    assert right[0] == len(texts) > right[1], right


def test_a_base_that_lacks_weights_is_refused(make_run: Callable[..., Run], base: Path, tmp_path: Path) -> None:
    encoder = BertModel.from_pretrained(base)
    weights = {name: value for name, value in encoder.state_dict().items() if "layer.1." not in name}
    encoder.save_pretrained(tmp_path / "broken", state_dict=weights)
    PreTrainedTokenizerFast.from_pretrained(base).save_pretrained(tmp_path / "broken")
    run = make_run()
    run.base = tmp_path / "broken"
    with pytest.raises(InvalidArgument, match="lacks weights"):
        training.fine_tune(run)


# Export and serving.


def test_the_bundle_predicts_what_pytorch_does(model: training.Model, predictor: Predictor) -> None:
    instances = [pb.Instance(text=text, top_k=3) for text in [*TEST["text"].to_pylist(), *STRANGE]]
    for source, served in zip(training.predict(model, instances), predictor.predict(instances), strict=True):
        assert [score.label for score in source.top] == [score.label for score in served.top]
        assert [score.score for score in source.top] == pytest.approx([score.score for score in served.top], abs=1e-5)


def test_a_batch_equals_singles(predictor: Predictor) -> None:
    instances = [pb.Instance(text=text, top_k=3) for text in [*TEST["text"].to_pylist(), *STRANGE]]
    together = predictor.predict(instances)
    for instance, one in zip(instances, together, strict=True):
        (alone,) = predictor.predict([instance])
        assert alone.label == one.label
        assert alone.score == pytest.approx(one.score, abs=1e-5)


def test_many_threads_share_a_codec(predictor: Predictor) -> None:
    instances = [pb.Instance(text=text) for text in TEST["text"].to_pylist()]
    expected = [prediction.label for prediction in predictor.predict(instances)]
    with ThreadPoolExecutor(8) as pool:
        batches: Iterator[Any] = pool.map(predictor.predict, [instances[i % 30 :] for i in range(200)])
        assert all([one.label for one in batch] == expected[i % 30 :] for i, batch in enumerate(batches))


def test_padding_and_truncation(bundle: Path) -> None:
    codec = TASK.open(bundle)
    arrays = codec.encode([pb.Instance(text="hop pine"), pb.Instance(text="")])
    assert arrays["input_ids"].tolist() == [[2, 4, 5, 3], [2, 3, 0, 0]]
    assert arrays["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert arrays["input_ids"].dtype == arrays["attention_mask"].dtype == np.int64
    assert codec.encode([pb.Instance(text="hop " * 9999)])["input_ids"].shape == (1, MAX_LENGTH)


def test_top_k(predictor: Predictor) -> None:
    one, two, all_of_them = predictor.predict([pb.Instance(text="lemon", top_k=k) for k in (0, 2, 99)])
    assert [len(prediction.top) for prediction in (one, two, all_of_them)] == [1, 2, 3]
    assert one.label == one.top[0].label == "sour"
    scores = [score.score for score in all_of_them.top]
    assert scores == sorted(scores, reverse=True)
    assert sum(scores) == pytest.approx(1.0, abs=1e-5)
    with pytest.raises(InvalidArgument) as negative:
        predictor.predict([pb.Instance(text="lemon"), pb.Instance(top_k=-1), pb.Instance(top_k=-7)])
    assert list(negative.value.violations) == ["instances[1].top_k", "instances[2].top_k"]


def test_the_plugin_and_its_codec_import_no_torch(bundle: Path) -> None:
    code = f"""
import sys
import luthier_text_classification as plugin
light = set(sys.modules)
task, = plugin.luthier_tasks()
from pathlib import Path
from luthier.inference.predictor import Predictor
instance = task.methods[0].instance(text="lemon")
print(Predictor(task, Path({str(bundle)!r})).predict([instance])[0].label)
assert not {{"torch", "transformers", "pandas"}} & set(sys.modules)
assert not {{"numpy", "pyarrow", "sklearn", "tokenizers"}} & light
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "sour\n", done.stderr


# Data and scores.


def test_scores() -> None:
    truth = ["a", "a", "a", "b", "b", "c"]
    predictions = [pb.Prediction(label=label) for label in ["a", "a", "b", "b", "b", "d"]]
    evaluation = TASK.score(pa.table({"text": [""] * 6, "label": truth}), predictions)
    assert evaluation.num_examples == 6
    assert dict(evaluation.metrics) == pytest.approx(
        {
            "accuracy": 4 / 6,
            "precision_macro": (1 + 2 / 3 + 0 + 0) / 4,
            "recall_macro": (2 / 3 + 1 + 0 + 0) / 4,
            "f1_macro": (0.8 + 0.8 + 0 + 0) / 4,
            "f1_weighted": (3 * 0.8 + 2 * 0.8) / 6,
        }
    )
    assert [(one.label, one.support) for one in evaluation.per_class] == [("a", 3), ("b", 2), ("c", 1), ("d", 0)]
    assert dict(evaluation.per_class[0].metrics) == pytest.approx({"precision": 1.0, "recall": 2 / 3, "f1": 0.8})
    assert list(evaluation.confusion_matrix.labels) == ["a", "b", "c", "d"]
    assert list(evaluation.confusion_matrix.counts) == [2, 1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]


def part(*rows: tuple[str, str]) -> pa.Table:
    return pa.table({"text": [text for text, _ in rows], "label": [label for _, label in rows]}, EXAMPLE_SCHEMA)


EXAMPLE_SCHEMA = pa.schema({"text": pa.string(), "label": pa.string()})
GOOD = [("one", "a"), ("two", "a"), ("three", "b"), ("four", "b")]


@pytest.mark.parametrize(
    ("train", "test", "fatal", "words"),
    [
        ([("one", "a"), ("two", "a")], [], True, "train has 1 class"),
        ([], [], True, "train has 0 classes"),
        ([*GOOD, (" ", "a")], [], True, "1 of the 5 examples of train have an empty text"),
        ([*GOOD, ("five", "")], [], True, "empty label"),
        (GOOD, [("five", "c")], True, "test has classes that train lacks: `c`"),
        ([*GOOD, ("five", "c")], [], False, "1 classes have one example in train: `c`"),
        ([*GOOD, ("ONE ", "b")], [], False, "1 texts are labelled in more than one way: `one`"),
        (GOOD, [("One", "a")], False, "1 texts of test are also in train: `one`"),
    ],
)
def test_problems_in_the_data(
    train: list[tuple[str, str]], test: list[tuple[str, str]], fatal: bool, words: str
) -> None:
    found = list(TASK.validate({"train": part(*train), "validation": part(), "test": part(*test)}))
    assert any(is_fatal == fatal and words in problem.message for is_fatal, problem in found), found


def test_good_data_has_no_problems() -> None:
    assert list(TASK.validate({"train": TRAIN.slice(0, 9), "validation": part(), "test": part()})) == []


def test_statistics() -> None:
    described = TASK.describe({"train": part(*GOOD), "validation": part(), "test": part(("five", "b"))})
    assert described == {
        "classes": [
            {"label": "a", "train": 2, "validation": 0, "test": 0},
            {"label": "b", "train": 2, "validation": 0, "test": 1},
        ],
        "text_characters": spread([*(len(text) for text, _ in GOOD), len("five")]),
    }


def test_a_text_is_in_one_part_whatever_its_labels() -> None:
    table = part(*((f"text {i % 50}", "ab"[i % 3 == 0]) for i in range(300)))
    parts = TASK.split(table, Split(method="hash", fractions=[0.6, 0.2, 0.2]))
    texts = [set(parts[name]["text"].to_pylist()) for name in ("train", "validation", "test")]
    assert sum(map(len, texts)) == len(set.union(*texts)) == 50
    assert parts["test"].num_rows == len(texts[2])
