"""Data of image classification: folders, manifests, tables, what is reported."""

from __future__ import annotations

import base64
import csv
import io
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from coloured_images import COLOURS, examples, image, png
from luthier import datasets
from luthier.distribution import spread
from luthier.errors import InvalidData
from luthier.task import DataFile, Split
from luthier_image_classification import ImageClassification

TASK = ImageClassification()


def jpeg(seed: int = 0) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image("red", seed)).save(stream, "JPEG")
    return stream.getvalue()


TRAIN, VALIDATION, TEST = examples(60, 1), examples(12, 2), examples(12, 3)

Pack = Callable[..., DataFile]


@pytest.fixture
def pack(tmp_path: Path) -> Pack:
    """Makes an uploaded zip of names and contents."""

    def make(files: Mapping[str, bytes | str], format: str = "", **given: Any) -> DataFile:
        path = tmp_path / "upload"
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return DataFile(path=path, name="a.zip", format=format, **given)

    return make


def rows(table: pa.Table) -> list[tuple[str, str]]:
    return list(zip(table["name"].to_pylist(), table["label"].to_pylist(), strict=True))


def problems(file: DataFile) -> list[tuple[str, int, str, str]]:
    with pytest.raises(InvalidData) as caught:
        TASK.read(file)
    return [(p.file, p.row, p.field, p.message) for p in caught.value.problems]


def warnings(file: DataFile) -> list[str]:
    TASK.read(file)
    assert all(warning.file == "a.zip" for warning in file.warnings)
    return [warning.message for warning in file.warnings]


# Folders.


def test_a_folder_is_a_class_however_deep_its_images_lie(pack: Pack) -> None:
    file = pack({"cats/1.png": png(), "cats/old/2.PNG": png(), "dogs/1.jpg": jpeg(), "SOURCE.txt": "from there"})
    table = TASK.read(file)
    assert rows(table) == [("cats/1.png", "cats"), ("cats/old/2.PNG", "cats"), ("dogs/1.jpg", "dogs")]
    assert table["image"].to_pylist() == [png(), png(), jpeg()]
    assert not file.warnings


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Validation", "dev"])
def test_outer_folders_that_are_called_like_parts_are_parts(pack: Pack, name: str) -> None:
    files = {f"data/{part}/{label}/1.png": png() for part in ("train", name, "test") for label in ("a", "b")}
    tables = TASK.read(pack(files))
    assert tables.keys() == {"train", "validation", "test"}
    assert rows(tables["validation"]) == [(f"{name}/a/1.png", "a"), (f"{name}/b/1.png", "b")]


def test_classes_may_be_called_like_parts(pack: Pack) -> None:
    table = TASK.read(pack({"train/1.png": png(), "test/1.png": png()}))
    assert rows(table) == [("test/1.png", "test"), ("train/1.png", "train")]


def test_what_is_odd_in_folders_is_told(pack: Pack) -> None:
    file = pack(
        {
            "cats/1.jpg": png(),
            "cats/notes.txt": "",
            "cats/2.gif": b"",
            "dogs/1.png": png(),
            "owls/": b"",
            "bats/1.gif": b"",
        }
    )
    assert warnings(file) == [
        "2 files end in .gif and are left out; images end in jpg, jpeg, jpe, jfif, png, webp, bmp, dib",
        "1 files end in .txt and are left out; images end in jpg, jpeg, jpe, jfif, png, webp, bmp, dib",
        "2 folders hold no image: `bats`, `owls`; there are no such classes",
        "1 images are named for another format than they have: `cats/1.jpg`; they are read as what they are",
    ]


def test_all_that_is_wrong_with_images_is_told_at_once_by_file(pack: Pack) -> None:
    noise = jpeg()
    large = io.BytesIO()
    Image.new("RGB", (4, 4)).save(large, "BMP")
    large.getbuffer()[18:26] = (10**4).to_bytes(4, "little") * 2
    file = pack(
        {
            "a/cut.jpg": noise[: len(noise) // 2],
            "a/text.png": "not an image",
            "a/empty.png": b"",
            "b/large.bmp": large.getvalue(),
            "b/good.png": png(),
            "loose.png": png(),
        }
    )
    found = {name: message for name, _, _, message in problems(file)}
    assert found.keys() == {"a.zip/a/cut.jpg", "a.zip/a/text.png", "a.zip/a/empty.png", "a.zip/b/large.bmp"} | {
        "a.zip/loose.png"
    }
    assert found["a.zip/loose.png"] == "the image lies in no class's folder"
    assert found["a.zip/a/empty.png"] == "there is no image"
    assert "damaged or cut short" in found["a.zip/a/cut.jpg"]
    assert "none of JPEG, PNG, WEBP, BMP" in found["a.zip/a/text.png"]
    assert "10000x10000 pixels; at most" in found["a.zip/b/large.bmp"]


def test_a_zip_without_images_is_refused(pack: Pack) -> None:
    assert [message for *_, message in problems(pack({"a/1.txt": ""}))] == [
        "there is no image in it; those taken end in jpg, jpeg, jpe, jfif, png, webp, bmp, dib"
    ]


# Manifests.


def test_a_manifest_names_images_from_its_own_folder(pack: Pack) -> None:
    lines = "image,label\nimg/1.png,cat\n../other/2.png,dog\n"
    file = pack({"x/labels.csv": lines, "x/img/1.png": png(), "other/2.png": png(), "other/3.png": png()})
    assert rows(TASK.read(file)) == [("x/img/1.png", "cat"), ("other/2.png", "dog")]
    assert [w.message for w in file.warnings] == ["1 images are in no manifest and are left out: `other/3.png`"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("m.csv", "file,class\n1.png,cat\n2.png,dog\n"),
        ("m.tsv", "file\tclass\n1.png\tcat\n2.png\tdog\n"),
        ("m.jsonl", '{"file": "1.png", "class": "cat"}\n{"file": "2.png", "class": "dog"}\n'),
    ],
)
@pytest.mark.parametrize("format", ["", "manifest"])
def test_a_manifest_may_be_any_table_with_any_columns(pack: Pack, name: str, content: str, format: str) -> None:
    columns = {"image": "file", "label": "class"}
    file = pack({name: content, "1.png": png(), "2.png": png()}, format, columns=columns)
    assert rows(TASK.read(file)) == [("1.png", "cat"), ("2.png", "dog")]


def test_a_column_or_the_manifests_names_say_the_part(pack: Pack) -> None:
    pictures = {f"{i}.png": png() for i in range(3)}
    column = "image,label,split\n0.png,a,train\n1.png,b,val\n2.png,b,test\n"
    by_column = TASK.read(pack({"all.csv": column, **pictures}))
    by_name = TASK.read(
        pack(
            {
                "train.csv": "image,label\n0.png,a\n",
                "val.csv": "image,label\n1.png,b\n",
                "test.csv": "image,label\n2.png,b\n",
                **pictures,
            }
        )
    )
    for tables in (by_column, by_name):
        assert {part: rows(table) for part, table in tables.items()} == {
            "train": [("0.png", "a")],
            "validation": [("1.png", "b")],
            "test": [("2.png", "b")],
        }


def test_all_that_is_wrong_with_a_manifest_is_told_at_once(pack: Pack) -> None:
    lines = ["image,label,split", "1.png,a,train", "gone.png,a,train", "2.png,,train", "3.png,b,holdout", "4.png,b,"]
    file = pack({"m.csv": "\n".join(lines), **{f"{i}.png": png() for i in (1, 2, 3)}, "4.png": b"nothing"})
    # Rows that cannot be read at all come alone: what else they name is not known.
    assert problems(file) == [("a.zip/m.csv", 3, "label", "there is no value")]
    lines[3] = "2.png,b,train"
    file = pack({"m.csv": "\n".join(lines), **{f"{i}.png": png() for i in (1, 2, 3)}, "4.png": b"nothing"})
    found = {(file, row, field): message for file, row, field, message in problems(file)}
    assert found.keys() == {
        ("a.zip/m.csv", 2, "image"),
        ("a.zip/m.csv", 4, "split"),
        ("a.zip", 0, "split"),
        ("a.zip/4.png", 0, ""),
    }
    assert found["a.zip/m.csv", 2, "image"].startswith("there is no file `gone.png` in the zip")
    assert found["a.zip/m.csv", 4, "split"].startswith("`holdout` is none of train, ")


def test_a_manifest_that_is_asked_for_and_missing_is_told(pack: Pack) -> None:
    found = problems(pack({"a/1.png": png()}, "manifest"))
    assert found[0][3] == "there is no manifest in it, a file that ends in csv, tsv, jsonl"
    found = problems(pack({"m.csv": "path,label\n1.png,a\n", "1.png": png()}, "manifest"))
    assert found[0][:3] == ("a.zip/m.csv", 0, "image")
    assert "--column image=path" in found[0][3]


def test_an_image_that_rows_name_twice_is_told(pack: Pack) -> None:
    file = pack({"m.csv": "image,label\n1.png,a\n./1.png,b\n", "1.png": png()})
    assert warnings(file) == ["1 images are named by several rows: `1.png`"]


# Tables that hold the images.


@pytest.mark.parametrize("format", ["csv", "jsonl", "parquet"])
def test_tables_hold_images_as_bytes_or_base64(format: str, tmp_path: Path) -> None:
    path = tmp_path / "upload"
    contents, labels = [png(), jpeg(), b"broken"], ["a", "b", "c"]
    texts = [base64.b64encode(content).decode() for content in contents]
    for keep in (3, 2):
        if format == "csv":
            with path.open("w", newline="") as stream:
                csv.writer(stream).writerows([("image", "label"), *zip(texts[:keep], labels, strict=False)])
        elif format == "jsonl":
            lines = [json.dumps({"image": i, "label": x}) for i, x in zip(texts[:keep], labels, strict=False)]
            path.write_text("\n".join(lines))
        else:
            pq.write_table(pa.table({"image": contents[:keep], "label": labels[:keep]}), path)
        file = DataFile(path=path, name="t", format=format)
        if keep == 3:
            found = problems(file)
            assert [problem[:3] for problem in found] == [("t", 3, "image")]
        else:
            assert TASK.read(file)["image"].to_pylist() == contents[:2]


# A whole data set.


def test_a_data_set_is_built_and_described(pack: Pack, tmp_path: Path) -> None:
    files = {f"{label}/{i}.png": png(label, i) for label in COLOURS for i in range(30)} | {"red/30.jpg": png("red", 99)}
    built = datasets.build(TASK, [pack(files)], Split(), tmp_path / "built")
    assert sum(built.num_examples.values()) == 91
    assert all(built.num_examples.values())
    classes = {entry["label"]: sum(entry[part] for part in datasets.PARTS) for entry in built.statistics["classes"]}
    assert classes == {"red": 31, "green": 30, "blue": 30}
    assert built.statistics["formats"] == {"PNG": 91}
    assert built.statistics["width_pixels"] == spread([40] * 91)
    assert built.statistics["grey_share"] == 0
    assert [w.message.partition(":")[0] for w in built.warnings] == [
        "1 images are named for another format than they have"
    ]


def test_images_that_contradict_or_leak_are_told() -> None:
    def part(*rows: tuple[bytes, str, str]) -> pa.Table:
        return pa.table(dict(zip(("image", "label", "name"), map(list, zip(*rows, strict=True)), strict=True)))

    one, two, three = (png("red", seed) for seed in range(3))
    parts = {
        "train": part((one, "a", "a/1"), (one, "b", "b/1"), (two, "b", ""), (three, "a", "a/3")),
        "validation": part((three, "a", "v/3")),
        "test": part((two, "b", "t/2"), (three, "c", "t/3")),
    }
    found = [(fatal, problem.message) for fatal, problem in TASK.validate(parts)]
    assert (True, "test has classes that train lacks: `c`; add examples of them to train") in found
    assert (False, "2 images have more than one label: `a/1 = b/1`, `a/3 = v/3`") in found
    assert (False, "1 images of validation are also in train: `a/3 = v/3`; its scores will flatter") in found
    leaked = "2 images of test are also in train: `a/3 = v/3`, `train 3 = t/2`; its scores will flatter"
    assert (False, leaked) in found
    alone = {
        part: table.filter(pa.array([x == "a" for x in table["label"].to_pylist()])) for part, table in parts.items()
    }
    assert any(fatal and "at least 2 are needed" in problem.message for fatal, problem in TASK.validate(alone))
