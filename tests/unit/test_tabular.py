"""Reading tables, and splitting by hash."""

from __future__ import annotations

import codecs
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message

from luthier import formats, tabular
from luthier.errors import InvalidData
from luthier.task import DataFile
from luthier.v1 import options_pb2
from luthier.v1.dataset_pb2 import DataProblem, Split

F = descriptor_pb2.FieldDescriptorProto


def _message() -> type[Message]:
    """An example message with every kind of field."""
    file = descriptor_pb2.FileDescriptorProto(
        name="tabular_test.proto", package="tabular_test", dependency=["luthier/v1/options.proto"], syntax="proto3"
    )
    color = file.enum_type.add(name="Color")
    color.value.add(name="NONE", number=0)
    color.value.add(name="RED", number=1)
    message = file.message_type.add(name="Example")
    kinds = {
        "text": (F.TYPE_STRING, {"required": True}),
        "weight": (F.TYPE_DOUBLE, {"default": "1.5", "min": 0, "max": 10}),
        "count": (F.TYPE_INT32, {}),
        "flag": (F.TYPE_BOOL, {}),
        "blob": (F.TYPE_BYTES, {}),
        "color": (F.TYPE_ENUM, {}),
        "points": (F.TYPE_FLOAT, {}),
    }
    for number, (name, (kind, help)) in enumerate(kinds.items(), 1):
        field = message.field.add(name=name, number=number, type=kind, label=F.LABEL_OPTIONAL)
        field.options.Extensions[options_pb2.field].CopyFrom(options_pb2.FieldHelp(**help))
        if kind == F.TYPE_ENUM:
            field.type_name = ".tabular_test.Color"
    message.field[-1].label = F.LABEL_REPEATED
    pool = descriptor_pool.Default()
    return message_factory.GetMessageClass(
        pool.AddSerializedFile(file.SerializeToString()).message_types_by_name["Example"]
    )


EXAMPLE = _message()


@pytest.fixture
def make(tmp_path: Path):
    def make(content: str | bytes | pa.Table, format: str = "csv", **kwargs) -> DataFile:
        path = tmp_path / f"data.{format}"
        if isinstance(content, pa.Table):
            pq.write_table(content, path)
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return DataFile(path=path, name=path.name, format=format, **kwargs)

    return make


def problems_of(file: DataFile) -> list[DataProblem]:
    with pytest.raises(InvalidData) as caught:
        tabular.read(file, EXAMPLE)
    assert all(problem.file == file.name for problem in caught.value.problems)
    return caught.value.problems


def rows(file: DataFile, field: str = "text") -> list:
    return tabular.read(file, EXAMPLE)[field].to_pylist()


def test_schema_follows_the_message():
    assert tabular.schema_of(EXAMPLE) == pa.schema(
        {
            "text": pa.string(),
            "weight": pa.float64(),
            "count": pa.int64(),
            "flag": pa.bool_(),
            "blob": pa.binary(),
            "color": pa.string(),
            "points": pa.list_(pa.float64()),
        }
    )


FULL = {"text": "a", "weight": 2.5, "count": 3, "flag": True, "blob": b"hi", "color": "RED", "points": [1.0, 2.0]}
DEFAULTS = {"text": "a", "weight": 1.5, "count": 0, "flag": False, "blob": b"", "color": "NONE", "points": []}


@pytest.mark.parametrize(
    ("format", "content"),
    [
        ("csv", "x,text,weight,count,flag,blob,color,y\n1,a,2.5,3,true,aGk=,RED,2\n"),
        ("tsv", "x\ttext\tweight\tcount\tflag\tblob\tcolor\ty\n1\ta\t 2.5\t3\t1\taGk=\tRED\t2.0\r\n"),
        ("jsonl", '{"text":"a","weight":2.5,"count":3,"flag":true,"blob":"aGk=","color":"RED","x":1,"y":2}'),
        ("parquet", pa.Table.from_pylist([{**FULL, "x": 1, "y": 2.0}])),
    ],
)
def test_every_format_gives_the_same_table(make, format, content):
    table = tabular.read(make(content, format, columns={"points": "x, y"}), EXAMPLE)
    assert table.schema == tabular.schema_of(EXAMPLE)
    assert table.to_pylist() == [FULL]


@pytest.mark.parametrize(
    ("format", "content"),
    [
        ("csv", "text\na\n"),
        ("csv", "text,weight,count,flag,blob,color\na,,,,,\n"),
        ("jsonl", '{"text":"a","weight":null,"points":null}\n\n'),
        ("parquet", pa.table({"text": ["a"], "weight": pa.array([None], pa.float64()), "flag": pa.nulls(1)})),
    ],
)
def test_absent_values_take_defaults(make, format, content):
    assert tabular.read(make(content, format), EXAMPLE).to_pylist() == [DEFAULTS]


@pytest.mark.parametrize(
    ("format", "content"),
    [
        ("csv", "text\n31\n007\n"),
        ("jsonl", '{"text": 31}\n{"text": "007"}\n'),
        ("parquet", pa.table({"text": pa.array(["31", "007"]).dictionary_encode()})),
        ("parquet", pa.table({"text": pa.array(["31", "007"], pa.large_string())})),
        ("parquet", pa.table({"text": pa.array([b"31", b"007"])})),
    ],
)
def test_ids_stay_as_they_are_written(make, format, content):
    assert rows(make(content, format)) == ["31", "007"]


@pytest.mark.parametrize("type", [pa.int32(), pa.uint64(), pa.float64()])
def test_whole_numbers_of_parquet_become_texts_without_a_point(make, type):
    assert rows(make(pa.table({"text": pa.array([31], type)}), "parquet")) == ["31"]


def test_time_stamps_become_seconds(make):
    column = pa.array([1_000], pa.timestamp("ms"))
    assert rows(make(pa.table({"text": ["a"], "weight": column}), "parquet"), "weight") == [1.0]


@pytest.mark.parametrize("type", [pa.list_(pa.int8()), pa.list_(pa.float32(), 2), pa.large_list(pa.string())])
def test_lists_of_parquet_are_taken_as_they_are(make, type):
    table = pa.table({"text": ["a", "b"], "points": pa.array([[1, 2], [3, 4]]).cast(type)})
    assert rows(make(table, "parquet"), "points") == [[1, 2], [3, 4]]


def test_lists_of_jsonl_may_mix_numbers_texts_and_single_values(make):
    content = '{"text":"a","points":[1,"2.5"]}\n{"text":"b","points":3}\n{"text":"c","points":[]}\n{"text":"d"}'
    assert rows(make(content, "jsonl"), "points") == [[1, 2.5], [3], [], []]


def test_csv_quotes_hold_commas_line_ends_and_quotes(make):
    assert rows(make('text,count\r\n"a, ""b""\r\nc",1\r\n\r\nd,2\r\n')) == ['a, "b"\r\nc', "d"]


def test_tsv_quotes_are_characters(make):
    content = 'ham\t"never closed\nspam\tsays "hi"\u2028there\n'
    assert rows(make(content, "tsv", header=False, columns={"text": "1"})) == [
        '"never closed',
        'says "hi"\u2028there',
    ]


@pytest.mark.parametrize("format", ["csv", "tsv", "jsonl"])
def test_a_byte_order_mark_is_no_data(make, format):
    content = '{"text":"ä"}' if format == "jsonl" else "text\nä\n"
    assert rows(make(codecs.BOM_UTF8 + content.encode(), format)) == ["ä"]


def test_long_values_are_read(make):
    assert rows(make(f'text\n"{"x" * 1_000_000}"\n')) == ["x" * 1_000_000]


def test_all_problems_come_at_once_with_row_and_field(make):
    content = "text,weight,count\na,x,1\n,1,1\nb,nan,1.5\n\nc,1\nd,11,3000000000\n"
    assert [(p.row, p.field, p.message) for p in problems_of(make(content))] == [
        (1, "weight", "`x` is not a number"),
        (2, "text", "there is no value"),
        (3, "weight", "`nan` is not a finite number"),
        (3, "count", "`1.5` is not a whole number of at most 64 bits"),
        (5, "", "the row has 2 columns where 3 are expected"),
        (6, "weight", "`11.0` is above the largest value, 10"),
        (6, "count", "`3000000000` is above the largest value, 2.14748e+09"),
    ]


@pytest.mark.parametrize(
    ("content", "row", "field", "message"),
    [
        ("text,flag\na,yes", 1, "flag", "`yes` is not true, false, 1 or 0"),
        ("text,blob\na,***", 1, "blob", "`***` is not base64"),
        ("text,color\na,BLUE", 1, "color", "`BLUE` is none of NONE, RED"),
        ("text,count\na,99999999999999999999", 1, "count", "is not a whole number"),
        ("text,weight\na,-1", 1, "weight", "`-1.0` is below the smallest value, 0"),
        ("text,points\na,", 1, "points", "`points` has no value"),
        ('text\na\n"never closed\nb\n', 2, "", "the row is malformed: unexpected end of data"),
        ("text,text\na,b", 0, "", "there are several columns `text`"),
        ("text\n", 0, "", "the file has no rows"),
        ("", 0, "", "the file is empty"),
    ],
)
def test_what_is_wrong_with_a_csv(make, content, row, field, message):
    (problem,) = problems_of(make(content))
    assert (problem.row, problem.field) == (row, field)
    assert message in problem.message


@pytest.mark.parametrize(
    ("content", "row", "field", "message"),
    [
        ('{"text":"a"}\n{"text":', 2, "", "the line is not JSON"),
        ('{"text":"a"}\n[1]', 2, "", "the line is not a JSON object"),
        ('{"text":"a"}\n{"text":{}}', 2, "text", "the value is an object"),
        ('{"text":"a","weight":NaN}', 1, "weight", "`nan` is not a finite number"),
        ('{"text":"a","count":1}\n{"text":"b","count":"x"}', 2, "count", "`x` is not a whole number"),
        ('{"text":"a","points":[1,null]}', 1, "points", "an element has no value"),
        ('{"text":["a"]}', 0, "text", "where single values are wanted"),
        ('{"text":"\\ud800"}', 1, "text", "the value is not UTF-8 text"),
        (b'{"text":"a"}\n{"text":"\xe4"}', 2, "", "the line is not UTF-8 text"),
        ("\n", 0, "", "the file is empty"),
    ],
)
def test_what_is_wrong_with_a_jsonl(make, content, row, field, message):
    problem = problems_of(make(content, "jsonl"))[0]
    assert (problem.row, problem.field) == (row, field)
    assert message in problem.message


@pytest.mark.parametrize(
    ("columns", "row", "field", "message"),
    [
        ({"text": [None, "a"]}, 1, "text", "there is no value"),
        ({"text": ["a"], "count": [2.5]}, 1, "count", "`2.5` is not a whole number"),
        ({"text": ["a"], "flag": [5]}, 1, "flag", "`5` is not true, false, 1 or 0"),
        ({"text": ["a"], "count": pa.array([1], pa.date32())}, 0, "count", "the column holds date32"),
        ({"text": [b"\xe4"]}, 1, "text", "is not UTF-8 text"),
        ({"text": [{"a": 1}]}, 0, "text", "the column holds struct"),
        ({"text": pa.array([], pa.string())}, 0, "", "the file has no rows"),
    ],
)
def test_what_is_wrong_with_a_parquet(make, columns, row, field, message):
    problem = problems_of(make(pa.table(columns), "parquet"))[0]
    assert (problem.row, problem.field) == (row, field)
    assert message in problem.message


def test_a_file_that_is_no_parquet(make):
    (problem,) = problems_of(make("text\na\n", "parquet"))
    assert problem.message.startswith("the file is not Parquet")


@pytest.mark.parametrize("header", [True, False])
def test_other_encodings_are_refused_by_row_and_field(make, header):
    content = ("id,name\n" if header else "") + '1,"a\nb"\n2,caf\u00e9\n'
    name = "name" if header else "1"
    (problem,) = problems_of(make(content.encode("latin-1"), header=header, columns={"text": name}))
    assert (problem.row, problem.field, problem.message) == (
        2,
        "text",
        "the value is not UTF-8 text; save the file as UTF-8",
    )


def test_utf16_is_refused(make):
    (problem,) = problems_of(make("text\na\n".encode("utf-16")))
    assert problem.message == "the header is not UTF-8 text; save the file as UTF-8"


def test_a_missing_column_says_how_to_map(make):
    (problem,) = problems_of(make("label,category\na,b\n", columns={"weight": "label"}))
    assert (problem.row, problem.field) == (0, "text")
    assert problem.message == (
        "there is no column `text`; the file has `label`, `category`; say which one it is, "
        "for instance --column text=category, or --no-header where the first line is data"
    )


def test_a_mapped_column_must_be_there_even_if_not_required(make):
    (problem,) = problems_of(make('{"text":"a"}', "jsonl", columns={"weight": "w"}))
    assert problem.field == "weight"
    assert "--no-header" not in problem.message


@pytest.mark.parametrize(
    ("format", "content"),
    [
        ("csv", "text,weight\na,1\nb,x\nc\nd,4\n"),
        ("jsonl", '{"text":"a","weight":1}\n{"text":"b","weight":"x"}\n{\n{"text":"d","weight":4}\n'),
    ],
)
def test_a_lenient_file_loses_its_bad_rows_alone(make, format, content):
    file = make(content, format, lenient=True)
    assert rows(file) == ["a", "d"]
    summary, *others = file.warnings
    assert (summary.message, summary.count) == ("2 rows are left out for what is wrong with them", 2)
    assert [(warning.row, warning.field) for warning in others] == [(2, "weight"), (3, "")]


def test_a_lenient_file_that_is_bad_as_a_whole_is_refused(make):
    for content in ("text,weight\na,x\nb,y\n", "other\n1\n", ""):
        assert problems_of(make(content, lenient=True))


def test_alike_problems_are_counted(make):
    found = problems_of(make("text,weight\n" + ",1\n" * 100))
    assert [p.row for p in found] == list(range(1, formats.MAX_ALIKE + 1))
    assert sum(p.count for p in found) == 100


def test_many_different_problems_are_cut_off(make):
    found = problems_of(make("text,weight\n" + "".join(f"a,x{i}\n" for i in range(3000))))
    assert len(found) == formats.MAX_PROBLEMS + 1
    assert found[-1].message == "there are 2000 more problems like these"
    assert sum(p.count for p in found) == 3000


def test_columns_without_a_message(make):
    columns = [tabular.Column(name="item", required=True), tabular.Column(name="title")]
    table = tabular.read_columns(make("id,title\n1,\n", columns={"item": "id"}), columns)
    assert table.to_pylist() == [{"item": "1", "title": ""}]


def texts(*values: str) -> pa.Table:
    return pa.table({"text": list(values), "label": ["x"] * len(values)})


def where_is(examples: pa.Table, **split) -> dict[str, str]:
    parts = tabular.split_by_hash(examples, Split(**split))
    return {text: name for name, table in parts.items() for text in table["text"].to_pylist()}


def test_shares_are_about_right_and_follow_the_seed():
    examples = texts(*map(str, range(20_000)))
    sizes = {name: table.num_rows for name, table in tabular.split_by_hash(examples, Split()).items()}
    assert sum(sizes.values()) == 20_000
    assert sizes["train"] == pytest.approx(16_000, rel=0.02)
    assert sizes["test"] == pytest.approx(2_000, rel=0.1)
    assert where_is(examples, seed=1) != where_is(examples, seed=2)


def test_an_example_stays_where_it_is_when_others_come():
    few, many = texts(*map(str, range(200))), texts(*map(str, reversed(range(1000))))
    before, after = where_is(few), where_is(many)
    assert before.items() <= after.items()


def test_equal_examples_stay_together_and_count_once_in_test():
    examples = texts(*[str(i) for i in range(500) for _ in range(3)])
    parts = tabular.split_by_hash(examples, Split(fractions=[0.5, 0, 0.5]))
    train, test = (parts[name]["text"].to_pylist() for name in ("train", "test"))
    assert not set(train) & set(test)
    assert len(train) == 3 * len(set(train))
    assert len(test) == len(set(test))
    assert parts["validation"].num_rows == 0


def test_case_and_white_space_make_no_difference():
    pairs = [(f"Straße  {i}", f"\tSTRASSE {i} ") for i in range(50)]
    parts = where_is(texts(*[text for pair in pairs for text in pair]), fractions=[1, 0, 0])
    assert len(parts) == 100
    parts = where_is(texts(*[text for pair in pairs for text in pair]), fractions=[0, 0, 1])
    assert len(parts) == 50


def test_the_key_decides_alone():
    examples = pa.table({"text": ["a"] * 50, "label": [str(i) for i in range(50)]})
    parts = tabular.split_by_hash(examples, Split(), key=["text"])
    assert sorted(table.num_rows for table in parts.values())[:2] == [0, 0]


def test_fractions_below_one_leave_examples_out():
    parts = tabular.split_by_hash(texts(*map(str, range(1000))), Split(fractions=[0.25, 0, 0.25]))
    assert sum(table.num_rows for table in parts.values()) == pytest.approx(500, rel=0.2)


def test_nothing_splits_into_nothing():
    assert [t.num_rows for t in tabular.split_by_hash(texts(), Split()).values()] == [0, 0, 0]


def test_the_hash_is_pinned_and_the_same_in_other_processes():
    code = (
        "import json, pyarrow as pa; from luthier.tabular import split_by_hash;"
        "from luthier.v1.dataset_pb2 import Split;"
        "t = pa.table({'text': [f'Text {i}' for i in range(40)], 'x': [i / 3 for i in range(40)],"
        "'y': [[i, 1] for i in range(40)], 'z': [bytes([i]) for i in range(40)]});"
        "print(json.dumps([int(r[5:]) for n in ('validation', 'test')"
        " for r in split_by_hash(t, Split(seed=42))[n]['text'].to_pylist()]))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
    output = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True, text=True)
    assert json.loads(output.stdout) == [16, 17, 21, 34, 36, 0, 3, 10, 27, 31]


def test_a_hundred_thousand_rows_split_within_seconds():
    examples = texts(*(f"text number {i}" for i in range(100_000)))
    start = time.perf_counter()
    tabular.split_by_hash(examples, Split())
    assert time.perf_counter() - start < 5


@pytest.mark.realdata
def test_sms_spam_has_all_its_rows_in_spite_of_stray_quotes(realdata):
    file = DataFile(
        path=realdata / "data/text-sms-spam/sms.tsv",
        name="sms.tsv",
        format="tsv",
        columns={"text": "1"},
        header=False,
    )
    assert tabular.read(file, EXAMPLE).num_rows == 5574


@pytest.mark.realdata
def test_banking_has_all_its_rows_in_spite_of_line_ends_in_values(realdata):
    path = realdata / "data/text-banking77/train.csv"
    assert tabular.read(DataFile(path=path, name=path.name, format="csv"), EXAMPLE).num_rows == 10_003
