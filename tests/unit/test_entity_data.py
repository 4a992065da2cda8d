"""Reading entities from columns and spans, the data set as a whole, and scores."""

from __future__ import annotations

import json
import random
import warnings
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier import datasets
from luthier.distribution import spread
from luthier.errors import InvalidData
from luthier.task import DataFile, Split
from luthier.tasks.entity_recognition.v1 import entity_recognition_pb2 as pb
from luthier_entity_recognition import EntityRecognition, metrics, schemes
from luthier_entity_recognition.examples import SCHEMA, Entity, Example, entities_of, table_of

TASK = EntityRecognition()


# CoNLL columns.


def file(tmp_path: Path, content: str | bytes, name: str = "x.conll", **given: Any) -> DataFile:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return DataFile(path=path, name=name, format=name.rpartition(".")[2], **given)


def found_in(table: pa.Table) -> list[list[tuple[str, str]]]:
    """Texts and labels of the entities of each row."""
    assert table.schema == SCHEMA
    rows = zip(table["text"].to_pylist(), entities_of(table), strict=True)
    return [[(text[start:end], label) for start, end, label in entities] for text, entities in rows]


def conll(*sentences: str) -> str:
    """Lines of tokens and tags that are written `token/tag`."""
    lines = ["".join(f"{pair.replace('/', chr(9))}\n" for pair in sentence.split()) for sentence in sentences]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "sentence",
    [
        "In/O New/B-LOC York/I-LOC Anna/B-PER Berg/I-PER Bo/B-PER met/O Lund/B-LOC",  # IOB2
        "In/O New/I-LOC York/I-LOC Anna/I-PER Berg/I-PER Bo/B-PER met/O Lund/I-LOC",  # IOB1
        "In/O New/B-LOC York/E-LOC Anna/B-PER Berg/E-PER Bo/S-PER met/O Lund/S-LOC",  # IOBES
        "In/O New/B-LOC York/L-LOC Anna/B-PER Berg/L-PER Bo/U-PER met/O Lund/U-LOC",  # BILOU
    ],
)
def test_schemes_say_the_same(tmp_path: Path, sentence: str) -> None:
    given = file(tmp_path, conll(sentence, "nothing/O", sentence))
    table = TASK.read(given)
    assert isinstance(table, pa.Table)
    expected = [("New York", "LOC"), ("Anna Berg", "PER"), ("Bo", "PER"), ("Lund", "LOC")]
    assert found_in(table) == [expected, [], expected]
    assert table["text"].to_pylist()[0] == "In New York Anna Berg Bo met Lund"
    assert not given.warnings


@pytest.mark.parametrize(
    ("content", "text", "entities"),
    [
        ("-DOCSTART- -X- O O\n\nU.N. NNP I-NP I-ORG\nin IN I-PP O\n", "U.N. in", [("U.N.", "ORG")]),
        ("# id 7 domain=en\nanna _ _ B-PER\nberg _ _ I-PER\n", "anna berg", [("anna berg", "PER")]),
        ("#\thttp://x\n1\tLund\tB-LOC\tO\n2\tist\tO\tO\n", "Lund ist", []),
        ("# text = Lund\n1-2\tLund.\t_\t-\tme\n1\tLund\tB-LOC\t-\tme\n2\t.\tO\t-\tme\n", "Lund .", [("Lund", "LOC")]),
        ("#\tO\nanna\tB-PER\n", "# anna", [("anna", "PER")]),
        ("see\tO\n# \tO\n#anna\tB-PER\n", "see # #anna", [("#anna", "PER")]),
        ("\ufeffNew York\tB-LOC\r\n\u2028\tO\r\n\u00a0\tO\r\n", "New York \u2028 \u00a0", [("New York", "LOC")]),
        ("anna \t B-creative-work\n", "anna", [("anna", "creative-work")]),
    ],
)
def test_kinds_of_columns(tmp_path: Path, content: str, text: str, entities: list[tuple[str, str]]) -> None:
    table = TASK.read(file(tmp_path, content))
    assert isinstance(table, pa.Table)
    assert table["text"].to_pylist() == [text]
    assert found_in(table) == [entities]


def test_columns_may_be_named_by_number(tmp_path: Path) -> None:
    content = "7\tLund\tB-LOC\tO\n9\tist\tO\tO\n"
    table = TASK.read(file(tmp_path, content, columns={"text": "1", "entities": "2"}))
    assert isinstance(table, pa.Table)
    assert found_in(table) == [[("Lund", "LOC")]]
    with pytest.raises(InvalidData) as wrong:
        TASK.read(file(tmp_path, content, columns={"text": "word", "entities": "4"}))
    assert list(wrong.value.violations) == ["x.conll:text", "x.conll:entities"]


def problems_of(given: DataFile) -> dict[str, str]:
    with pytest.raises(InvalidData) as wrong:
        TASK.read(given)
    return wrong.value.violations


@pytest.mark.parametrize("content", ["", "\n \n\t\n", "-DOCSTART- O\n\n"])
def test_an_empty_file(tmp_path: Path, content: str) -> None:
    assert problems_of(file(tmp_path, content)) == {"x.conll": "the file is empty"}


def test_all_problems_of_columns_are_named_by_line(tmp_path: Path) -> None:
    content = b"anna\tB-PER\nmet\tO\n\nbo\tX-PER\n\tO\nin\tb-LOC\nlund\tB-\n"
    found = problems_of(file(tmp_path, content))
    assert list(found) == [
        f"x.conll:row {row}:{field}" for row, field in [(4, "entities"), (5, "text"), (6, "entities"), (7, "entities")]
    ]
    assert found["x.conll:row 4:entities"] == (
        "`X-PER` is no tag: write O, or a type after one of B-, I-, M-, E-, L-, S-, U-"
    )
    content = b"anna\tB-PER\nmet\nbo\tO\tB-PER\nat\tO\nM\xfcnchen\tB-LOC\n"
    assert problems_of(file(tmp_path, content)) == {
        "x.conll:row 2": "the line has 1 column where most have 2",
        "x.conll:row 3": "the line has 3 columns where most have 2",
        "x.conll:row 5": "the line is not UTF-8 text; save the file as UTF-8",
    }
    assert "1 column" in problems_of(file(tmp_path, "anna\nberg\n"))["x.conll"]


def test_slips_are_refused(tmp_path: Path) -> None:
    found = problems_of(file(tmp_path, conll("in/O lund/B-LOC anna/I-PER met/O berg/I-PER")))
    assert found == {
        "x.conll:row 3:entities": "I-PER has no PER before it to go on from; begin the entity with B-PER",
        "x.conll:row 5:entities": "I-PER has no PER before it to go on from; begin the entity with B-PER",
    }
    found = problems_of(file(tmp_path, conll("lund/S-LOC anna/B-PER berg/I-PER", "bo/E-PER dora/B-PER emil/S-PER")))
    assert list(found) == [f"x.conll:row {row}:entities" for row in (3, 5, 6)]


def test_a_few_slips_are_warnings(tmp_path: Path) -> None:
    given = file(tmp_path, conll("in/O lund/I-LOC", *["in/O new/B-LOC york/I-LOC"] * 99))
    table = TASK.read(given)
    assert isinstance(table, pa.Table)
    assert found_in(table)[:2] == [[("lund", "LOC")], [("new york", "LOC")]]
    assert [(warning.row, warning.field) for warning in given.warnings] == [(2, "entities")]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["O", "B-A", "I-A", "B-B", "I-B"]), max_size=12))
def test_tags_are_read_as_seqeval_reads_them(tags: list[str]) -> None:
    from seqeval.metrics.sequence_labeling import get_entities

    spelling = schemes.spell([schemes.parse(tag) or ("", "") for tag in tags])
    assert spelling.entities == [(first, last + 1, label) for label, first, last in get_entities(tags)]


# JSONL and Parquet.


def jsonl(*records: Any) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


SPANS = [{"start": 3, "end": 7, "label": "PER"}, {"start": 11, "end": 15, "label": "LOC"}]


def test_spans_are_read_in_any_writing(tmp_path: Path) -> None:
    text = "by Anna in Lund"
    expected = [[("Anna", "PER"), ("Lund", "LOC")], []]
    lists = [[11, 15, "LOC"], [3, 7, "PER"]]
    simple = file(tmp_path, jsonl({"text": text, "entities": SPANS}, {"text": text}), "a.jsonl")
    doccano = jsonl({"data": text, "labels": lists}, {"data": text, "labels": None})
    mapped = file(tmp_path, doccano, "b.jsonl", columns={"text": "data", "entities": "labels"})
    path = tmp_path / "c.parquet"
    pq.write_table(pa.table({"text": [text, text], "entities": [SPANS, []], "id": [1, 2]}), path)
    parquet = DataFile(path=path, name="c.parquet", format="parquet")
    for one in (simple, mapped, parquet):
        table = TASK.read(one)
        assert isinstance(table, pa.Table)
        assert found_in(table) == expected


def test_offsets_are_code_points(tmp_path: Path) -> None:
    table = TASK.read(file(tmp_path, jsonl({"text": "🍺🍺 é Lund", "entities": [[5, 9, "LOC"]]}), "x.jsonl"))
    assert isinstance(table, pa.Table)
    assert found_in(table) == [[("Lund", "LOC")]]


def test_all_problems_of_spans_are_named_by_row(tmp_path: Path) -> None:
    records = [
        {"text": "Anna", "entities": [[0, 5, "PER"]]},
        {"text": "Anna", "entities": [[2, 2, "PER"], [-1, 2, "PER"]]},
        {"text": "Anna", "entities": [[0, 3, "PER"], [2, 4, "LOC"]]},
        {"text": "Anna", "entities": [[0, 4, " "], ["0", 4, "PER"], [0, 4, 7], [0, 4], {"start": 0}, 5]},
        {"text": 3, "entities": [[0, 4, "PER"]]},
        {"entities": "PER"},
        {"text": "\ud83d", "entities": []},
        [],
    ]
    content = jsonl(*records).encode() + b"{\n" + b'{"text": "M\xfcnchen"}\n'
    found = problems_of(file(tmp_path, content, "x.jsonl"))
    assert list(found) == [
        *(f"x.jsonl:row {row}:entities" for row in (1, 2, 3, 4)),
        "x.jsonl:row 5:text",
        "x.jsonl:row 6:text",
        "x.jsonl:row 6:entities",
        "x.jsonl:row 7:text",
        *(f"x.jsonl:row {row}" for row in (8, 9, 10)),
    ]
    assert found["x.jsonl:row 1:entities"] == (
        "[0, 5) ends behind the text, which has 4 characters (code points, not bytes)"
    )
    assert found["x.jsonl:row 3:entities"] == "[0, 3) `PER` and [2, 4) `LOC` overlap; keep one of them"
    assert found["x.jsonl:row 2:entities"].count("[") == 2
    assert found["x.jsonl:row 4:entities"].count(";") == 5


def test_a_missing_column_is_said_once(tmp_path: Path) -> None:
    found = problems_of(file(tmp_path, jsonl(*[{"text": "Anna", "spans": []}] * 3), "x.jsonl"))
    assert found == {
        "x.jsonl:entities": (
            "there is no column `entities`; the file has `text`, `spans`; say which one it is, for instance "
            "--column entities=spans"
        )
    }
    assert problems_of(file(tmp_path, "\n", "x.jsonl")) == {"x.jsonl": "the file is empty"}
    assert "not Parquet" in problems_of(file(tmp_path, "PAR1", "x.parquet"))["x.parquet"]


# The data set as a whole.


def part(*rows: Example) -> pa.Table:
    return table_of(rows)


GOOD = [("Anna in Lund", [(0, 4, "PER"), (8, 12, "LOC")]), ("Bo in York", [(0, 2, "PER"), (6, 10, "LOC")])]


@pytest.mark.parametrize(
    ("train", "test", "fatal", "said"),
    [
        ([*GOOD, (" ", [])], [], True, "1 of the 3 examples of train have an empty text"),
        ([("Anna", [])], [], True, "no example of train has an entity"),
        ([], [], True, "no example of train has an entity"),
        (
            GOOD,
            [("beer", [(0, 4, "DRINK")])],
            False,
            "test has labels that train lacks, which will never be found: `DRINK`",
        ),
        ([*GOOD, ("beer", [(0, 4, "DRINK")])], [], False, "1 labels have one entity in train: `DRINK`"),
        ([*GOOD, ("Annas", [(0, 4, "PER")])], [], False, "1 entities of train begin or end within a word"),
        ([*GOOD, ("anna  in lund", [])], [], False, "1 texts occur with different entities: `anna in lund`"),
        (GOOD, [("ANNA in Lund", [])], False, "1 texts of test are also in train: `anna in lund`"),
    ],
)
def test_problems_in_the_data(train: list[Example], test: list[Example], fatal: bool, said: str) -> None:
    found = list(TASK.validate({"train": part(*train), "validation": part(), "test": part(*test)}))
    assert any(is_fatal == fatal and said in problem.message for is_fatal, problem in found), found


def test_good_data_has_no_problems() -> None:
    assert list(TASK.validate({"train": part(*GOOD), "validation": part(), "test": part()})) == []


def test_statistics() -> None:
    described = TASK.describe({"train": part(*GOOD), "validation": part(), "test": part(("Lund!", [(0, 4, "LOC")]))})
    assert described == {
        "labels": [
            {"label": "LOC", "train": 2, "validation": 0, "test": 1},
            {"label": "PER", "train": 2, "validation": 0, "test": 0},
        ],
        "texts_without_entities": {"train": 0, "validation": 0, "test": 0},
        "text_characters": spread([*(len(text) for text, _ in GOOD), len("Lund!")]),
    }


def test_files_become_a_data_set(tmp_path: Path) -> None:
    sentences = [f"in/O {name}/B-LOC number/O {i}/O" for i, name in enumerate(["lund", "york"] * 60)]
    built = datasets.build(TASK, [file(tmp_path, conll(*sentences), "x.iob")], Split(), tmp_path / "built")
    assert sum(built.num_examples.values()) == 120
    parts = datasets.load(tmp_path / "built")
    assert {table.schema.field("text").type for table in parts.values()} == {pa.string()}
    assert all(len(row) == 1 for table in parts.values() for row in entities_of(table))
    assert min(built.num_examples.values()) > 0


# Scores.


def random_tags(draw: random.Random, length: int) -> list[str]:
    """Valid IOB2."""
    tags: list[str] = []
    for _ in range(length):
        choices = ["O", "O", "B-A", "B-B", "B-C"]
        if tags and tags[-1] != "O":
            choices += [f"I-{tags[-1][2:]}"] * 3
        tags.append(draw.choice(choices))
    return tags


@pytest.mark.parametrize("seed", range(5))
def test_scores_are_those_of_seqeval(seed: int) -> None:
    from seqeval.metrics import classification_report
    from seqeval.scheme import IOB2

    draw = random.Random(seed)
    truth = [random_tags(draw, draw.randint(0, 12)) for _ in range(60)]
    guess = [[*random_tags(draw, len(tags))] if draw.random() < 0.6 else tags for tags in truth]

    def spans(sentences: list[list[str]]) -> list[list[Entity]]:
        parsed = [schemes.spell([schemes.parse(tag) or ("", "") for tag in tags]).entities for tags in sentences]
        return [[(3 * first, 3 * behind - 1, label) for first, behind, label in one] for one in parsed]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report: Any = classification_report(truth, guess, mode="strict", scheme=IOB2, output_dict=True)
    ours = metrics.score(spans(truth), spans(guess))
    assert {name: ours.metrics[name] for name in ("precision", "recall", "f1")} == pytest.approx(
        {name: report["micro avg"][theirs] for name, theirs in NAMES_OF_SEQEVAL.items()}
    )
    assert ours.metrics["f1_macro"] == pytest.approx(report["macro avg"]["f1-score"])
    assert [one.label for one in ours.per_class] == ["A", "B", "C"]
    for one in ours.per_class:
        assert one.support == report[one.label]["support"]
        assert dict(one.metrics) == pytest.approx(
            {name: report[one.label][theirs] for name, theirs in NAMES_OF_SEQEVAL.items()}
        )


NAMES_OF_SEQEVAL = {"precision": "precision", "recall": "recall", "f1": "f1-score"}


def test_scores_of_spans() -> None:
    truth = part(("Anna in Lund at six", [(0, 4, "PER"), (8, 12, "LOC")]), ("Bo", [(0, 2, "PER")]), ("", []))
    found = [[("PER", 0, 4, 0.9), ("PER", 8, 12, 0.6), ("LOC", 16, 19, 0.5)], [], []]
    predictions = [
        pb.Prediction(entities=[pb.Entity(label=label, start=s, end=e, score=score) for label, s, e, score in one])
        for one in found
    ]
    evaluation = TASK.score(truth, predictions)
    assert evaluation.num_examples == 3
    assert dict(evaluation.metrics) == pytest.approx(
        {"precision": 1 / 3, "recall": 1 / 3, "f1": 1 / 3, "f1_macro": (0 + 0.5) / 2}
    )
    assert [(one.label, one.support) for one in evaluation.per_class] == [("LOC", 1), ("PER", 2)]
    assert list(evaluation.confusion_matrix.labels) == ["LOC", "PER", "(none)"]
    assert list(evaluation.confusion_matrix.counts) == [0, 1, 0, 0, 1, 1, 1, 0, 0]
    assert TASK.grades(truth, predictions) == pytest.approx([0.4, 0.0, 1.0])
    assert evaluation.curves[0].label == "all entities · AP 0.333"
    assert list(evaluation.curves[0].x) == pytest.approx([1 / 3])
    nothing = TASK.score(part(("a", [])), [pb.Prediction()])
    assert dict(nothing.metrics) == {"precision": 0, "recall": 0, "f1": 0, "f1_macro": 0}


# Real data.


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "rows", "entities"),
    [
        ("ner-ncbi-disease/train.tsv", 5432, 5145),
        ("ner-ncbi-disease/test.tsv", 940, 960),
        ("ner-wnut17/wnut17train.conll", 3394, 1975),
        ("ner-wnut17/emerging.test.annotated", 1287, 1079),
    ],
)
def test_real_files(realdata: Path, name: str, rows: int, entities: int) -> None:
    path = realdata / "data" / name
    table = TASK.read(DataFile(path=path, name=path.name, format=path.suffix[1:]))
    assert isinstance(table, pa.Table)
    assert table.num_rows == rows
    assert sum(map(len, entities_of(table))) == entities
