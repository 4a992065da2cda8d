"""Building data set versions out of files, and loading them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from luthier import datasets, tabular
from luthier.errors import DataLoss, InvalidArgument, InvalidData
from luthier.task import DataFile, DataProblem, Split, Task
from luthier.tasks.text_classification.v1 import text_classification_pb2 as pb


class Texts(Task):
    """A task with a key, a way of splitting and an extra file of its own."""

    id = "texts"
    title = "Texts"
    service = pb.DESCRIPTOR.services_by_name["TextClassificationService"]
    config = pb.Config
    example = pb.Example
    primary_metric = "accuracy"
    extra_files = ("titles",)
    splits = ("hash", "first-half")

    def split(self, examples: pa.Table, split: Split) -> dict[str, pa.Table]:
        if split.method == "first-half":
            half = examples.num_rows // 2
            return {"train": examples.slice(0, half), "test": examples.slice(half)}
        return tabular.split_by_hash(examples, split, key=("text",))

    def validate(self, parts: Mapping[str, pa.Table]) -> Iterable[tuple[bool, DataProblem]]:
        for label in parts["train"]["label"].to_pylist():
            if label in ("bad", "odd"):
                yield label == "bad", DataProblem(field="label", message=f"{label} is {label}")

    def describe(self, parts: Mapping[str, pa.Table]) -> dict[str, Any]:
        return {"classes": sorted(set(parts["train"]["label"].to_pylist()))}

    def trainer(self) -> Any:
        raise NotImplementedError

    open = instances = score = trainer


TASK = Texts()


@pytest.fixture
def make(tmp_path: Path):
    def make(name: str, rows: Iterable[tuple[str, str]], role: str = "") -> DataFile:
        path = tmp_path / name
        lines = [json.dumps({"text": text, "label": label}) for text, label in rows]
        if path.suffix == ".csv":
            lines = ["text,label", *(f"{text},{label}" for text, label in rows)]
        path.write_text("\n".join(lines))
        return DataFile(path=path, name=name, format=path.suffix[1:], role=role)

    return make


def rows(start: int, stop: int, label: str = "x") -> list[tuple[str, str]]:
    return [(f"text {i}", label) for i in range(start, stop)]


def build(files: list[DataFile], directory: Path, split: Split | None = None, **kwargs: Any) -> datasets.Built:
    return datasets.build(TASK, files, split or Split(), directory, **kwargs)


def test_files_without_a_part_are_split(make, tmp_path):
    built = build([make("a.csv", rows(0, 600)), make("b.jsonl", rows(600, 1000))], tmp_path / "out", Split(seed=3))
    assert sum(built.num_examples.values()) == 1000
    assert built.num_examples["train"] == pytest.approx(800, rel=0.05)
    assert built.split == Split(method="hash", fractions=[0.8, 0.1, 0.1], seed=3)
    assert built.statistics == {"classes": ["x"]}
    assert built.warnings == []
    assert built.size_bytes == sum(path.stat().st_size for path in (tmp_path / "out").glob("*.parquet"))


def test_given_parts_are_kept(make, tmp_path):
    files = [make(f"{role}.csv", rows(i, i + 10), role) for i, role in enumerate(("train", "validation", "test"))]
    built = build([*files, make("more.csv", rows(50, 55), "train")], tmp_path / "out")
    assert built.num_examples == {"train": 15, "validation": 10, "test": 10}
    assert built.split == Split(method="given")


@pytest.mark.parametrize(
    ("given", "carved", "fractions"),
    [("test", "validation", [0.9, 0.1, 0.0]), ("validation", "test", [0.9, 0.0, 0.1])],
)
def test_a_part_that_is_not_given_is_taken_from_train(make, tmp_path, given, carved, fractions):
    files = [make("train.csv", rows(0, 1000), "train"), make("other.csv", rows(2000, 2010), given)]
    built = build(files, tmp_path / "out", Split(seed=5))
    assert built.num_examples[given] == 10
    assert built.num_examples[carved] == pytest.approx(100, rel=0.3)
    assert sum(built.num_examples.values()) == 1010
    assert built.split == Split(method="given", fractions=fractions, seed=5)


def test_train_alone_is_split_in_three(make, tmp_path):
    built = build([make("train.csv", rows(0, 1000), "train")], tmp_path / "out")
    assert built.num_examples["test"] == pytest.approx(100, rel=0.3)
    assert built.split == Split(method="hash", fractions=[0.8, 0.1, 0.1])


def test_a_task_may_split_in_its_own_way_and_without_validation(make, tmp_path):
    built = build([make("a.csv", rows(0, 10))], tmp_path / "out", Split(method="first-half"))
    assert built.num_examples == {"train": 5, "validation": 0, "test": 5}
    assert built.split == Split(method="first-half")
    assert datasets.load(tmp_path / "out")["validation"].schema == tabular.schema_of(pb.Example)


def test_extra_files_are_kept_by_their_role(make, tmp_path):
    built = build([make("a.csv", rows(0, 50)), make("t.csv", rows(0, 3), "titles")], tmp_path / "out")
    assert built.num_examples["titles"] == 3
    assert list(datasets.load(tmp_path / "out")) == ["train", "validation", "test", "titles"]
    assert datasets.load(tmp_path / "out", ["titles"])["titles"]["text"].to_pylist() == ["text 0", "text 1", "text 2"]


@pytest.mark.parametrize(
    ("roles", "split", "violation"),
    [
        (["dev"], Split(), "files[0].role"),
        (["train", ""], Split(), "files[1].role"),
        (["test", ""], Split(), "files[1].role"),
        (["test"], Split(), "files"),
        (["titles"], Split(), "files"),
        ([], Split(), "files"),
        ([""], Split(method="given"), "split.method"),
        ([""], Split(method="per-user"), "split.method"),
        ([""], Split(fractions=[0.5, 0.5]), "split.fractions"),
        ([""], Split(fractions=[0.8, 0.2, 0.1]), "split.fractions"),
        ([""], Split(fractions=[1.2, -0.1, -0.1]), "split.fractions"),
        ([""], Split(fractions=[float("nan"), 0, 0]), "split.fractions"),
        ([""], Split(fractions=[0, 0.5, 0.5]), "split.fractions"),
        ([""], Split(method="first-half", fractions=[2]), "split.fractions"),
        (["train", "test"], Split(method="first-half"), "split"),
        (["train", "test"], Split(fractions=[0.8, 0.1, 0.1]), "split"),
    ],
)
def test_files_and_split_that_do_not_go_together(make, tmp_path, roles, split, violation):
    files = [make(f"{i}.csv", rows(0, 20), role) for i, role in enumerate(roles)]
    with pytest.raises(InvalidArgument) as caught:
        build(files, tmp_path / "out", split)
    assert list(caught.value.violations) == [violation]
    assert not (tmp_path / "out").exists()


def test_the_problems_of_all_files_come_at_once(make, tmp_path):
    files = [make("a.csv", [("", "x"), ("b", "")]), make("good.csv", rows(0, 9)), make("c.jsonl", [("c", "")])]
    with pytest.raises(InvalidData) as caught:
        build(files, tmp_path / "out")
    assert [(p.file, p.row, p.field) for p in caught.value.problems] == [
        ("a.csv", 1, "text"),
        ("a.csv", 2, "label"),
        ("c.jsonl", 1, "label"),
    ]


def test_what_the_task_refuses_is_refused(make, tmp_path):
    with pytest.raises(InvalidData, match="bad is bad"):
        build([make("a.csv", rows(0, 50, "bad"), "train")], tmp_path / "out")


def test_what_the_task_finds_odd_is_counted(make, tmp_path):
    files = [make(f"{role}.csv", rows(0, 50, "odd"), role) for role in ("train", "validation", "test")]
    assert build(files, tmp_path / "out").warnings == [DataProblem(field="label", message="odd is odd", count=50)]


def test_nothing_left_to_train_from(make, tmp_path):
    with pytest.raises(InvalidData, match="no example is left to train from"):
        build([make("a.csv", rows(0, 1))], tmp_path / "out", Split(method="first-half"))


def test_examples_in_no_part_are_reported(make, tmp_path):
    built = build([make("a.csv", rows(0, 300) * 2)], tmp_path / "out")
    (warning,) = built.warnings
    assert warning.message.startswith(f"{600 - sum(built.num_examples.values())} of 600 examples are in no part")


def test_progress_is_reported_and_may_end_it(make, tmp_path):
    stages = []
    build([make("a.csv", rows(0, 50))], tmp_path / "out", report=lambda *step: stages.append(step))
    assert [stage for stage, _, _ in stages] == ["reading", "splitting", "validating", "writing"]

    def cancel(stage: str, done: int, total: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        build([make("a.csv", rows(0, 50))], tmp_path / "other", report=cancel)


def test_equal_content_has_an_equal_digest_and_equal_bytes(make, tmp_path):
    one = build([make("a.csv", rows(0, 100))], tmp_path / "1")
    two = build([make("b.jsonl", rows(0, 60)), make("c.csv", rows(60, 100))], tmp_path / "2")
    assert one.digest == two.digest
    for path in (tmp_path / "1").glob("*.parquet"):
        assert path.read_bytes() == (tmp_path / "2" / path.name).read_bytes()
    other = build([make("a.csv", [*rows(0, 99), ("text 99", "y")])], tmp_path / "3")
    assert other.digest != one.digest


def test_the_folder_says_what_it_holds(make, tmp_path):
    built = build([make("a.csv", rows(0, 100))], tmp_path / "out")
    description = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert description["task"] == "texts"
    assert description["digest"] == built.digest
    assert description["num_examples"] == built.num_examples
    assert description["split"]["method"] == "hash"


TABLE = pa.table(
    {
        "text": ["", "ä", "xyz"],
        "blob": [b"", b"\0", b""],
        "number": [0.5, -1.0, 3.0],
        "whole": [1, 2, 3],
        "flag": [True, False, True],
        "list": [[1.0], [], [2.0, 3.0]],
        "spans": [[{"label": "A", "end": 3}], [], [{"label": "", "end": 0}]],
    }
)


def digest(table: pa.Table) -> str:
    return datasets.digest_of("task", {"train": table})


def test_the_digest_is_pinned():
    assert digest(TABLE) == "e0c165b2862c304186f8a7d0f23de72d98e9e0a3700c17187ae4a62781a6cbae"


def test_chunks_slices_and_metadata_make_no_difference():
    chunked = pa.concat_tables([TABLE.slice(0, 1), TABLE.slice(1, 2)])
    sliced = pa.concat_tables([TABLE, TABLE]).combine_chunks().slice(3, 3)
    described = TABLE.replace_schema_metadata({"written": "today"})
    assert {digest(table) for table in (chunked, sliced, described)} == {digest(TABLE)}


def test_storing_makes_no_difference(tmp_path):
    pq.write_table(TABLE, tmp_path / "train.parquet")
    assert digest(datasets.load(tmp_path, ["train"])["train"]) == digest(TABLE)


@pytest.mark.parametrize("name", TABLE.column_names)
def test_each_column_counts(name):
    index = TABLE.column_names.index(name)
    changed = TABLE.set_column(index, name, TABLE[name].take([1, 0, 2]))
    renamed = TABLE.rename_columns({name: "other"})
    assert len({digest(TABLE), digest(changed), digest(renamed)}) == 3


def test_boundaries_absence_parts_and_task_count():
    def one(values: list[Any], kind: pa.DataType | None = None) -> str:
        return digest(pa.table({"a": pa.array(values, kind)}))

    assert one(["ab", "c"]) != one(["a", "bc"])
    assert one(["a", None]) != one(["a", ""])
    assert one([[1], [2, 3]]) != one([[1, 2], [3]])
    assert one([None], pa.list_(pa.int64())) != one([[]], pa.list_(pa.int64()))
    assert one(["", ""]) != one([""])
    assert datasets.digest_of("task", {"test": TABLE}) != digest(TABLE)
    assert datasets.digest_of("other", {"train": TABLE}) != digest(TABLE)


def test_a_type_that_has_no_canonical_form_is_refused():
    with pytest.raises(TypeError, match="date32"):
        digest(pa.table({"a": pa.array([1], pa.date32())}))


@pytest.mark.parametrize("name", ["train.parquet", "dataset.json"])
@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"x")])
def test_a_missing_or_damaged_file_is_data_loss(make, tmp_path, name, damage):
    build([make("a.csv", rows(0, 20))], tmp_path / "out")
    damage(tmp_path / "out" / name)
    with pytest.raises(DataLoss, match=name):
        datasets.load(tmp_path / "out")


@pytest.mark.realdata
def test_banking_and_spam_and_movies(realdata, tmp_path):
    from luthier.tasks.recommendation.v1 import recommendation_pb2

    def file(path: str, **kwargs: Any) -> DataFile:
        full = realdata / "data" / path
        return DataFile(path=full, name=full.name, format=full.suffix[1:], **kwargs)

    class Ratings(Texts):
        example = recommendation_pb2.Example
        validate, describe, split = Task.validate, Task.describe, Task.split

    columns = {"label": "category"}
    banking = [file(f"text-banking77/{role}.csv", role=role, columns=columns) for role in ("train", "test")]
    built = build(banking, tmp_path / "banking")
    assert built.num_examples["test"] == 3080
    assert built.num_examples["train"] + built.num_examples["validation"] == pytest.approx(10_003, abs=10)
    spam = file("text-sms-spam/sms.tsv", columns={"label": "0", "text": "1"}, header=False)
    assert build([spam], tmp_path / "spam").statistics == {"classes": ["ham", "spam"]}
    columns = {"user": "userId", "item": "movieId", "weight": "rating", "time": "timestamp"}
    ratings = file("recsys-ml-latest-small/ratings.csv", columns=columns)
    movies = datasets.build(Ratings(), [ratings], Split(seed=42), tmp_path / "movies")
    assert sum(movies.num_examples.values()) == 100_004


class Divided(Texts):
    """Each file divides its examples itself, and brings titles."""

    def read(self, file: DataFile) -> Mapping[str, pa.Table]:
        examples = super().read(file)
        assert isinstance(examples, pa.Table)
        file.warnings.append(DataProblem(file=file.name, message="odd, and yet read"))
        titles = pa.table({"title": [file.name]})
        return {"train": examples.slice(0, 60), "test": examples.slice(60), "titles": titles}


@pytest.mark.parametrize(
    ("split", "role", "method", "counts"),
    [
        # What the files say holds, and the missing part comes from train.
        (Split(), "", "given", {"test": 80}),
        (Split(method="given"), "", "given", {"test": 80}),
        # A way of splitting that is asked for, and a part that is stated for the file, go before it.
        (Split(method="first-half"), "", "first-half", {"train": 100, "test": 100}),
        (Split(), "train", "hash", {}),
    ],
)
def test_a_file_may_divide_its_examples(make, tmp_path, split, role, method, counts):
    files = [make("a.csv", rows(0, 100), role), make("b.csv", rows(100, 200), role)]
    built = datasets.build(Divided(), files, split, tmp_path / "out")
    assert built.split.method == method
    assert sum(built.num_examples[part] for part in ("train", "validation", "test")) == 200
    assert built.num_examples["titles"] == 2
    assert {part: built.num_examples[part] for part in counts} == counts
    assert [(w.file, w.message) for w in built.warnings] == [
        ("a.csv", "odd, and yet read"),
        ("b.csv", "odd, and yet read"),
    ]
