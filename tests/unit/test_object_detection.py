"""Data of object detection: layouts, boxes, what is reported, statistics."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from boxed_images import PNG, entry, table
from luthier import images, suggestions
from luthier.errors import InvalidData
from luthier.services.datasets import _misread
from luthier.task import DataFile
from luthier.v1.dataset_pb2 import CreateDatasetRequest, Split
from luthier_object_detection import ObjectDetection, data
from luthier_object_detection.files import read
from luthier_object_detection.resolution import input_size


def packed(path: Path, files: Mapping[str, bytes | str], *, format: str = "", boxes: str = "clip") -> DataFile:
    with zipfile.ZipFile(path / "data.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return DataFile(path=path / "data.zip", name="data.zip", format=format, options={"boxes": boxes})


def problems(file: DataFile) -> list[tuple[str, int, str, str]]:
    with pytest.raises(InvalidData) as caught:
        read(file)
    return [(p.file.removeprefix("data.zip/"), p.row, p.field, p.message) for p in caught.value.problems]


# Pascal VOC.


def voc(*objects: str, filename: str = "a.png", width: int = 60, height: int = 40) -> str:
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation><filename>{filename}</filename>{size}{''.join(objects)}</annotation>"


def voc_object(name: str, *corners: object, difficult: int = 0) -> str:
    inner = "".join(
        f"<{tag}>{value}</{tag}>" for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    )
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{inner}</bndbox></object>"


def test_voc_with_lists(tmp_path: Path) -> None:
    files = {
        "Annotations/a.xml": voc(voc_object("dog", 1, 2, 30.5, 40), voc_object("cat", 5, 5, 9, 9, difficult=1)),
        "Annotations/b.xml": voc(filename="b.png"),
        "Annotations/c.xml": voc(filename="c.png"),
        "JPEGImages/a.png": PNG,
        "JPEGImages/b.png": PNG,
        "JPEGImages/c.png": PNG,
        "ImageSets/Main/train.txt": "a\n",
        "ImageSets/Main/val.txt": "",
        "ImageSets/Main/test.txt": "b\n\n",
        "ImageSets/Main/dog_train.txt": "a 1\n",
    }
    file = packed(tmp_path, files)
    tables = read(file)
    assert tables.keys() == {"train", "test"}
    assert tables["train"]["objects"].to_pylist() == [
        [entry("dog", 1, 2, 30.5, 40), entry("cat", 5, 5, 9, 9, crowd=True)]
    ]
    assert tables["test"].select(["name", "objects"]).to_pylist() == [{"name": "JPEGImages/b.png", "objects": []}]
    assert [w.message for w in file.warnings] == ["1 annotations are in no list and are left out: `Annotations/c.xml`"]


def test_voc_finds_images_beside_masks_of_the_same_name(tmp_path: Path) -> None:
    files = {"xmls/a.xml": voc(filename="a.jpg"), "images/a.png": PNG, "trimaps/a.png": PNG}
    assert read(packed(tmp_path, files))[""]["name"].to_pylist() == ["images/a.png"]


def test_everything_wrong_with_voc_is_reported_at_once(tmp_path: Path) -> None:
    files = {
        "Annotations/a.xml": voc(
            voc_object("dog", "nan", 2, 3, 4), voc_object("", 1, 2, 3, 4), "<object><name>cat</name></object>", width=61
        ),
        "Annotations/b.xml": voc(filename="b.png"),
        "Annotations/c.xml": '<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]><annotation>&e;</annotation>',
        "Annotations/d.xml": "<annotation>",
        "Annotations/e.xml": voc(filename="e.png"),
        "JPEGImages/a.png": PNG,
        "JPEGImages/e.png": PNG[:60],
        "ImageSets/Main/train.txt": "a\nb\nc\nd\ne\nf\n",
        "ImageSets/Main/test.txt": "a\n",
    }
    found = problems(packed(tmp_path, files))
    assert [problem[:3] for problem in found] == [
        ("ImageSets/Main/train.txt", 1, ""),
        ("Annotations/a.xml", 1, "object/bndbox/xmin"),
        ("Annotations/a.xml", 2, "object/name"),
        ("Annotations/a.xml", 3, "object/bndbox/xmin"),
        ("Annotations/a.xml", 3, "object/bndbox/ymin"),
        ("Annotations/a.xml", 3, "object/bndbox/xmax"),
        ("Annotations/a.xml", 3, "object/bndbox/ymax"),
        ("Annotations/b.xml", 0, "filename"),
        ("Annotations/c.xml", 0, ""),
        ("Annotations/d.xml", 0, ""),
        ("data.zip", 0, "ImageSets/Main"),
        ("Annotations/a.xml", 0, "size"),
        ("JPEGImages/e.png", 0, "image"),
    ]
    assert "document type" in found[8][3]


# COCO.


def coco(**changes: Any) -> dict[str, Any]:
    content = {
        "images": [{"id": 7, "file_name": "a.png", "width": 60, "height": 40}, {"id": 8, "file_name": "b.png"}],
        "categories": [{"id": 3, "name": "cat"}, {"id": 1, "name": "dog"}, {"id": 2, "name": "animals"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 1, "bbox": [10, 20, 5, 6.5], "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 3, "bbox": [0, 0, 60, 40], "iscrowd": 1},
        ],
    }
    return {**content, **changes}


def test_coco_in_one_file(tmp_path: Path) -> None:
    files = {
        "instances_train.json": json.dumps(coco()),
        "captions.json": json.dumps({"images": [], "annotations": []}),
        "some/folder/a.png": PNG,
        "some/folder/b.png": PNG,
        "some/folder/c.png": PNG,
    }
    file = packed(tmp_path, files)
    tables = read(file)
    assert tables.keys() == {"", "classes"}
    assert tables[""].select(["name", "objects"]).to_pylist() == [
        {
            "name": "some/folder/a.png",
            "objects": [entry("dog", 10, 20, 15, 26.5), entry("cat", 0, 0, 60, 40, crowd=True)],
        },
        {"name": "some/folder/b.png", "objects": []},
    ]
    assert tables["classes"]["name"].to_pylist() == ["cat", "dog", "animals"]
    assert [(w.message, w.count) for w in file.warnings] == [
        ("1 images are in no list and are left out: `some/folder/c.png`", 1)
    ]


def test_coco_in_parts_that_share_names(tmp_path: Path) -> None:
    one = [{"id": 1, "file_name": "000.png"}]
    files: dict[str, str | bytes] = {}
    for folder in ("train2017", "val2017"):
        files[f"annotations/instances_{folder}.json"] = json.dumps(coco(images=one, annotations=[]))
        files[f"{folder}/000.png"] = PNG
    tables = read(packed(tmp_path, files))
    assert {part: tables[part]["name"].to_pylist() for part in ("train", "validation")} == {
        "train": ["train2017/000.png"],
        "validation": ["val2017/000.png"],
    }


def test_everything_wrong_with_coco_is_reported_at_once(tmp_path: Path) -> None:
    content = coco(
        images=[
            {"id": 7, "file_name": "a.png", "width": 40, "height": 60},
            {"id": 7, "file_name": "b.png"},
            {"id": 9, "file_name": "missing.png"},
            {"file_name": "c.png"},
            {"id": 10, "file_name": "a.png"},
        ],
        categories=[
            {"id": 1, "name": "dog"},
            {"id": 1, "name": "cat"},
            {"id": 2, "name": "dog"},
            {"id": 3, "name": " "},
        ],
        annotations=[
            {"id": 1, "image_id": 70, "category_id": 1, "bbox": [1, 2, 3, 4]},
            {"id": 1, "image_id": 7, "category_id": [], "bbox": [1, 2, 3, 4]},
            {"id": 3, "image_id": 7, "category_id": 1, "bbox": [1, 2, float("nan"), 4]},
            {"id": 4, "image_id": 7, "category_id": 1, "bbox": [1, 2, 10**400, 4]},
            {"id": 5, "image_id": 7, "category_id": 1, "bbox": "1 2 3 4"},
            {"id": 6, "image_id": 7, "bbox": [1, 2, 3, 4]},
            17,
        ],
    )
    files = {"train.json": json.dumps(content), "test.json": b"\xff{", "a.png": PNG, "b.png": PNG}
    assert sorted(problem[:3] for problem in problems(packed(tmp_path, files))) == [
        ("test.json", 0, ""),
        ("train.json", 0, "size"),
        ("train.json", 1, "annotations.image_id"),
        ("train.json", 2, "annotations.category_id"),
        ("train.json", 2, "annotations.id"),
        ("train.json", 2, "categories.id"),
        ("train.json", 2, "images.id"),
        ("train.json", 3, "annotations.bbox"),
        ("train.json", 3, "categories.name"),
        ("train.json", 3, "images.file_name"),
        ("train.json", 4, "annotations.bbox"),
        ("train.json", 4, "categories.name"),
        ("train.json", 4, "images"),
        ("train.json", 5, "annotations.bbox"),
        ("train.json", 5, "images.file_name"),
        ("train.json", 6, "annotations"),
        ("train.json", 7, "annotations"),
    ]


def test_alike_problems_are_counted(tmp_path: Path) -> None:
    bad = [{"image_id": 0, "category_id": 1, "bbox": [1, 2, 3, 4]}] * 1000
    files = {"a.json": json.dumps(coco(annotations=bad)), "a.png": PNG, "b.png": PNG}
    with pytest.raises(InvalidData) as caught:
        read(packed(tmp_path, files))
    assert len(caught.value.problems) == 20
    assert sum(problem.count for problem in caught.value.problems) == 1000


# YOLO.


def test_yolo_by_data_yaml(tmp_path: Path) -> None:
    files = {
        "data.yaml": "path: ../datasets/pets\ntrain: images/one\nval: ../images/two\nnames: {0: dog, 1: cat}\n",
        "images/one/a.png": PNG,
        "images/one/b.png": PNG,
        "images/two/c.png": PNG,
        "images/three/d.png": PNG,
        "labels/one/a.txt": "1 0.5 0.5 0.5 0.25\n\n0 0.1 0.1 0.2 0.1 0.2 0.4\n",
        "labels/two/c.txt": "",
    }
    file = packed(tmp_path, files)
    tables = read(file)
    assert tables["classes"]["name"].to_pylist() == ["dog", "cat"]
    (boxes, none) = tables["train"]["objects"].to_pylist()
    assert boxes[0] == entry("cat", 15, 15, 45, 25)
    assert boxes[1] == pytest.approx(entry("dog", 6, 4, 12, 16))
    assert none == []
    assert tables["validation"]["name"].to_pylist() == ["images/two/c.png"]
    assert [w.message for w in file.warnings] == ["1 images are in no part and are left out: `images/three/d.png`"]


@pytest.mark.parametrize("folders", ["{part}/{kind}", "{kind}/{part}"])
def test_yolo_by_folders_and_classes_txt(folders: str, tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {"classes.txt": "dog\ncat\n"}
    for part in ("train", "valid", "test"):
        files[f"{folders.format(part=part, kind='images')}/a.png"] = PNG
        files[f"{folders.format(part=part, kind='labels')}/a.txt"] = "0 0.5 0.5 1 1"
    tables = read(packed(tmp_path, files))
    assert tables.keys() == {"train", "validation", "test", "classes"}
    assert tables["validation"]["objects"].to_pylist() == [[entry("dog", 0, 0, 60, 40)]]


def test_everything_wrong_with_yolo_is_reported_at_once(tmp_path: Path) -> None:
    files = {
        "data.yaml": "nc: 3\nnames: [dog, dog]\n",
        "images/a.png": PNG,
        "images/b.png": PNG,
        "labels/a.txt": "2 0.5 0.5 0.1 0.1\n0 0.5 0.5 0.1\n0 0.5 inf 0.1 0.1\n0 30 20 10 10\n-1 0.5 0.5 0.1 0.1\n",
        "labels/b.txt": b"\xff\xfe0",
        "labels/c.txt": "0 0.5 0.5 0.1 0.1\n",
    }
    assert [problem[:3] for problem in problems(packed(tmp_path, files))] == [
        ("data.yaml", 0, "nc"),
        ("data.yaml", 2, "names"),
        ("labels/a.txt", 1, "class"),
        ("labels/a.txt", 2, ""),
        ("labels/a.txt", 3, ""),
        ("labels/a.txt", 4, "box"),
        ("labels/a.txt", 5, "class"),
        ("labels/b.txt", 0, ""),
        ("labels/c.txt", 0, ""),
    ]


# Any layout.


def test_a_layout_that_nothing_tells_is_an_error(tmp_path: Path) -> None:
    ((file, _, _, message),) = problems(packed(tmp_path, {"a.png": PNG}))
    assert file == "data.zip"
    assert all(layout in message for layout in ("COCO", "VOC", "YOLO"))


@pytest.mark.parametrize(
    ("boxes", "kept", "warnings"),
    [
        ("clip", ["whole", "rounded", "out"], {"no area": 2, "outside": 1, "cut to it": 1}),
        ("drop", ["whole", "rounded"], {"no area": 2, "outside": 1, "sticks out of its image, and is left out": 1}),
    ],
)
def test_boxes_that_do_not_fit(boxes: str, kept: list[str], warnings: dict[str, int], tmp_path: Path) -> None:
    file = packed(tmp_path, ODD_BOXES, boxes=boxes)
    (objects,) = read(file)[""]["objects"].to_pylist()
    assert [found["label"] for found in objects] == kept
    assert (
        objects[:3]
        == [entry("whole", 0, 0, 60, 40), entry("rounded", 0, 0, 60, 40), entry("out", 10, 10, 60, 40)][: len(kept)]
    )
    assert {text: w.count for w in file.warnings for text in warnings if text in w.message} == warnings


def test_boxes_that_do_not_fit_may_be_refused(tmp_path: Path) -> None:
    found = problems(packed(tmp_path, ODD_BOXES, boxes="refuse"))
    assert [(file, row, field) for file, row, field, _ in found] == [
        ("a.xml", row, "object/bndbox") for row in (3, 4, 5, 6)
    ]


ODD_BOXES = {
    "a.xml": voc(
        voc_object("whole", 0, 0, 60, 40),
        voc_object("rounded", -1, 0, 61, 40),
        voc_object("out", 10, 10, 90, 50),
        voc_object("line", 10, 10, 10, 20),
        voc_object("turned", 20, 10, 10, 20),
        voc_object("outside", 70, 10, 90, 20),
    ),
    "a.png": PNG,
}


def test_a_misnamed_image_is_read_and_reported(tmp_path: Path) -> None:
    file = packed(tmp_path, {"a.xml": voc(filename="a.jpg"), "a.jpg": PNG})
    assert read(file)[""].num_rows == 1
    assert [(w.file, w.field) for w in file.warnings] == [("data.zip/a.jpg", "image")]


def test_options_are_checked() -> None:
    request = CreateDatasetRequest(options={"boxes": "keep", "colour": "red"})
    assert _misread(request, ObjectDetection()) == {
        "options[boxes]": "'keep' is none of clip, drop, refuse",
        "options[colour]": "the task reads with the options boxes",
    }


def test_a_split_keeps_equal_images_together() -> None:
    twice = pa.concat_tables([table([entry("dog", 1, 1, 9, 9)]), table([])])
    parts = ObjectDetection().split(twice, Split())
    assert sorted(part.num_rows for part in parts.values()) in ([0, 0, 2], [0, 0, 1])


def test_problems_and_statistics() -> None:
    dogs = [entry("dog", 0, 0, 20, 10)] * 5
    parts = {
        "train": table(dogs, [entry("cat", 0, 0, 9, 9, crowd=True)]),
        "validation": table([entry("cat", 0, 0, 9, 9)], image=PNG + b" "),
        "test": table([]),
        "classes": pa.table({"name": ["horse", "dog", "horse"]}),
    }
    assert data.labels_of(parts) == ["dog"]
    found = [(fatal, problem.field, problem.message.split(":")[0]) for fatal, problem in data.problems(parts)]
    assert found == [
        (False, "label", "1 classes have no object in train, and are not learnt"),
        (False, "label", "validation has objects of classes that train lacks, which will count as missed"),
        (False, "image", "1 images of test are also in train"),
    ]
    statistics = ObjectDetection().describe(parts)
    assert statistics["classes"] == [
        {"label": "horse", "train": 0, "validation": 0, "test": 0},
        {"label": "dog", "train": 5, "validation": 0, "test": 0},
        {"label": "cat", "train": 1, "validation": 1, "test": 0},
    ]
    assert statistics["images_without_objects"] == {"train": 0, "validation": 0, "test": 1}
    assert statistics["object_width_pixels"]["p50"] == 20
    assert statistics["object_width_pixels"]["min"] == 9
    assert suggestions.size_of(statistics) == max(statistics["width_pixels"]["p50"], statistics["height_pixels"]["p50"])
    assert statistics["crowds"] == 1


def test_data_without_objects_are_refused() -> None:
    parts = {part: table([]) for part in ("train", "validation", "test")}
    assert [fatal for fatal, _ in data.problems(parts)] == [True]


def test_the_input_fits_the_images_and_the_objects() -> None:
    def blank(width: int, height: int) -> bytes:
        return images.encode_png(np.zeros((height, width), dtype=np.uint8))

    large, small = [entry("a", 0, 0, 100, 100)], [entry("a", 0, 0, 8, 8)]
    assert input_size(table(large, image=blank(640, 480)), 0) == (320, 416)
    assert input_size(table(small, image=blank(640, 480)), 0) == (480, 640)
    assert input_size(table(large, image=blank(128, 128)), 0) == (128, 128)
    assert input_size(table(large, image=blank(640, 480)), 224) == (160, 224)
    assert input_size(table(small, image=blank(20, 10)), 0) == (64, 64)
    tall_and_wide = pa.concat_tables([table(large, image=blank(300, 500)), table(large, image=blank(500, 300))])
    assert input_size(tall_and_wide, 0) == (416, 416)
