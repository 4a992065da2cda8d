"""The plugin for entity recognition, from pictures to training, with a tiny BERT that is made here."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

import tiny_bert
from luthier import fields
from luthier.errors import InvalidArgument
from luthier.inference.predictor import Predictor
from luthier.task import Run
from luthier.tasks.entity_recognition.v1 import entity_recognition_pb2 as pb
from luthier_entity_recognition import EntityRecognition, training
from luthier_entity_recognition.examples import table_of
from strange_texts import STRANGE

TASK = EntityRecognition()


# Pictures.


def draw(text: str, *entities: tuple[str, int, int]) -> ElementTree.Element:
    found = [pb.Entity(label=label, start=start, end=end, text=text[start:end]) for label, start, end in entities]
    picture = TASK.render(pb.Instance(text=text), pb.Prediction(entities=found))
    assert picture.media_type == "image/svg+xml"
    return ElementTree.fromstring(picture.content.decode())


def written(svg: ElementTree.Element) -> list[str]:
    return ["".join(one.itertext()) for one in svg.iterfind("{*}text")]


def grounds(svg: ElementTree.Element) -> list[dict[str, str]]:
    """The rectangles of entities."""
    return [one.attrib for one in svg.iterfind("{*}rect")][1:]


def test_a_picture_shows_text_and_labels() -> None:
    svg = draw("by <Anna & Bo> in Lund", ("PER", 3, 14), ("LOC", 18, 22))
    assert written(svg) == ["by", "<Anna", "&", "Bo>", "PER", "in", "Lund", "LOC"]
    assert len({ground["fill"] for ground in grounds(svg)}) == 2
    assert sum(float(ground["width"]) for ground in grounds(svg)) == (11 + 1 + 3 + 4 + 1 + 3) * 9
    other = draw("Lund", ("LOC", 0, 4))
    assert grounds(other)[0]["fill"] == grounds(svg)[-1]["fill"]


def test_a_picture_wraps_and_stays_within_its_borders() -> None:
    svg = draw("a\n" + "x" * 300 + " " + "word " * 100, ("LONG", 2, 302))
    width, height = float(svg.attrib["width"]), float(svg.attrib["height"])
    for ground in grounds(svg):
        assert float(ground["x"]) + float(ground["width"]) <= width
    lines = {float(one.attrib["y"]) for one in svg.iterfind("{*}text")}
    assert len(lines) > 8
    assert max(lines) < height


def test_a_picture_of_anything_is_xml() -> None:
    for text in STRANGE:
        draw(text, *([("<&\x00>", 0, len(text))] if text else []))
    assert written(draw("\x0b\ufffe")) == ["\ufffd\ufffd"]


def test_a_text_that_runs_to_the_left_begins_at_the_right() -> None:
    svg = draw("مقهى الأزهر", ("ORG", 0, 4))
    first, caption, second = (float(one.attrib["x"]) for one in svg.iterfind("{*}text"))
    assert first > caption > second


def test_many_labels_have_colours() -> None:
    svg = draw("a " * 20, *((f"L{i}", 2 * i, 2 * i + 1) for i in range(20)))
    assert len({ground["fill"] for ground in grounds(svg)}) == 12


# Training and serving.

NAMED = ["anna", "bruno", "clara", "dora"]
VOCABULARY = ["a", "beer", "from", "based", "-", *NAMED]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert.write(tmp_path_factory.mktemp("base"), VOCABULARY, seed=5)


def sentences(pattern: str) -> pa.Table:
    """The pattern with each name."""
    at = pattern.index("{")
    return table_of((pattern.format(name), [(at, at + len(name), "PER")]) for name in NAMED)


JOINED, CUT = sentences("a beer from {} a beer"), sentences("a beer from {}-based beer")
LONG = pa.concat_tables(
    [sentences(f"{'a beer ' * n}from {{}}-based beer{' a beer' * (22 - n)}") for n in range(0, 23, 2)]
)
"""48 texts of 49 tokens, each in 5 windows of 14 and the two around them."""


@pytest.fixture
def tune(base: Path, tmp_path: Path) -> Callable[..., Run]:
    def made(train: pa.Table, validation: pa.Table, **given: Any) -> Run:
        config = pb.Config(**({"max_length": 16} | given))
        fields.resolve(config)
        run = Run(
            parts={"train": train, "validation": validation}, config=config, base=base, seed=0, directory=tmp_path
        )
        run.model = training.fine_tune(run)  # type: ignore[attr-defined]
        return run

    return made


@pytest.fixture(scope="module")
def model(base: Path, tmp_path_factory: pytest.TempPathFactory) -> training.Model:
    config = pb.Config(epochs=6, max_length=16, learning_rate=0.003, head_learning_rate=0.02, batch_size=8)
    fields.resolve(config)
    parts = {"train": pa.concat_tables([CUT, LONG]), "validation": CUT.slice(0, 0)}
    run = Run(parts=parts, config=config, base=base, seed=0, directory=tmp_path_factory.mktemp("run"))
    tuned = training.fine_tune(run)
    assert run.figures["steps"] == 6 * math.ceil((4 + 48 * 5) / 8)
    return tuned


@pytest.fixture(scope="module")
def predictor(model: training.Model, tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    directory = tmp_path_factory.mktemp("bundle")
    training.export(model, directory)
    return Predictor(TASK, directory)


def test_words_are_cut_as_the_entities_want(
    predictor: Predictor, model: training.Model, tune: Callable[..., Any]
) -> None:
    assert not model.texts.preprocessing.joined
    (found,) = predictor.predict([pb.Instance(text="a beer from dora-based")])
    assert [(one.text, one.label, one.start, one.end) for one in found.entities] == [("dora", "PER", 12, 16)]
    assert tune(JOINED, JOINED, epochs=1).model.texts.preprocessing.joined


def test_a_long_text_is_read_to_its_end(
    predictor: Predictor, model: training.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "".join(f"{'a beer ' * 200}from {name}-based beer " for name in NAMED)
    (found,) = predictor.predict([pb.Instance(text=text)])
    assert [one.text for one in found.entities] == NAMED
    assert [text[one.start : one.end] for one in found.entities] == NAMED
    (source,) = training.predict(model, [pb.Instance(text=text)])
    assert [(one.start, one.end) for one in source.entities] == [(one.start, one.end) for one in found.entities]
    monkeypatch.setattr("luthier_entity_recognition.codec.EntityRecognitionCodec.max_rows", 7)
    (in_turn,) = predictor.predict([pb.Instance(text=text)])
    assert [(one.start, one.end) for one in in_turn.entities] == [(one.start, one.end) for one in found.entities]
    assert [one.score for one in in_turn.entities] == pytest.approx([one.score for one in found.entities], abs=1e-5)


def test_min_score_leaves_out_and_is_checked(predictor: Predictor) -> None:
    one, none = predictor.predict(
        [pb.Instance(text="a beer from anna-based beer", min_score=score) for score in (0.0, 1.0)]
    )
    assert [found.text for found in one.entities] == ["anna"]
    assert 0.5 < one.entities[0].score < 1
    assert not none.entities
    with pytest.raises(InvalidArgument) as wrong:
        predictor.predict([pb.Instance(min_score=2), pb.Instance(), pb.Instance(min_score=-1)])
    assert list(wrong.value.violations) == ["instances[0].min_score", "instances[2].min_score"]


def test_strange_texts_are_read_alike(predictor: Predictor, model: training.Model) -> None:
    instances = [pb.Instance(text=text) for strange in STRANGE for text in (strange, f"{strange} from anna-based")]
    for source, served in zip(training.predict(model, instances), predictor.predict(instances), strict=True):
        assert [(one.label, one.start, one.end) for one in source.entities] == [
            (one.label, one.start, one.end) for one in served.entities
        ]


def test_validation_without_entities_is_none(tune: Callable[..., Any]) -> None:
    run = tune(JOINED, table_of([("a beer", [])]), epochs=3, patience=1)
    assert run.figures["epochs_run"] == run.figures["best_epoch"] == 3


def test_few_examples_get_many_epochs(tune: Callable[..., Any]) -> None:
    assert [training.enough_epochs(count, 16) for count in (1, 800, 3394, 5432, 10**6)] == [20, 20, 5, 3, 3]
    assert tune(JOINED, JOINED.slice(0, 0)).figures["epochs_run"] == 20


def test_a_random_start_is_another_start(tune: Callable[..., Any]) -> None:
    runs = [tune(JOINED, JOINED, epochs=1, learning_rate=0.0, from_scratch=scratch) for scratch in (False, True)]
    assert not torch.equal(*(run.model.tagger.encoder.embeddings.word_embeddings.weight for run in runs))


def test_a_later_version_keeps_labels_and_admits_new_ones(
    model: training.Model, predictor: Predictor, tmp_path: Path
) -> None:
    """Without learning it finds what the earlier one found, though its texts show another label."""
    (tmp_path / "bundle").mkdir()
    training.export(model, tmp_path / "bundle")
    config = pb.Config(epochs=1, max_length=16, learning_rate=0, head_learning_rate=0)
    fields.resolve(config)
    train = table_of([("a beer from anna-based beer", [(2, 6, "DRINK"), (12, 16, "PER")])] * 8)
    parts = {"train": train, "validation": train.slice(0, 0)}
    run = Run(parts=parts, config=config, base=tmp_path / "bundle", warm_start=True, seed=0, directory=tmp_path)
    later = training.fine_tune(run)
    assert later.labels == ["DRINK", "PER"]
    instances = [pb.Instance(text=text) for text in CUT["text"].to_pylist()]
    ours, theirs = training.predict(later, instances), predictor.predict(instances)
    for our, their in zip(ours, theirs, strict=True):
        found = [(e.start, e.end, e.label) for e in our.entities if e.label == "PER"]
        assert found == [(e.start, e.end, e.label) for e in their.entities] != []
