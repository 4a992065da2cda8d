"""Reading COCO, VOC and YOLO, boxes from the file to the picture and back; what a whole run does is in conformance."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from luthier import datasets, images
from luthier.errors import InvalidArgument, InvalidData
from luthier.services.datasets import _misread
from luthier.task import DataFile
from luthier.tasks.object_detection.v1 import object_detection_pb2 as pb
from luthier.v1.dataset_pb2 import CreateDatasetRequest, Split
from luthier_object_detection import ObjectDetection, data, metrics, picture
from luthier_object_detection.codec import LABELS_FILE, PREPROCESSING_FILE, ObjectDetectionCodec, suppress
from luthier_object_detection.files import SCHEMA, read
from luthier_object_detection.resolution import input_size

PNG = images.encode_png(np.full((40, 60, 3), 99, dtype=np.uint8))
"""60 pixels wide and 40 high."""


def packed(path: Path, files: Mapping[str, bytes | str], *, format: str = "", boxes: str = "clip") -> DataFile:
    with zipfile.ZipFile(path / "data.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return DataFile(path=path / "data.zip", name="data.zip", format=format, options={"boxes": boxes})


def problems(file: DataFile) -> list[tuple[str, int, str, str]]:
    with pytest.raises(InvalidData) as caught:
        read(file)
    return [(p.file.removeprefix("data.zip/"), p.row, p.field, p.message) for p in caught.value.problems]


def entry(label: str, *corners: float, crowd: bool = False) -> dict[str, Any]:
    return {"label": label, **dict(zip(("x_min", "y_min", "x_max", "y_max"), corners, strict=True)), "crowd": crowd}


def table(*objects: list[dict[str, Any]], image: bytes = PNG) -> pa.Table:
    rows = [{"image": image, "name": f"{i}.png", "objects": listed} for i, listed in enumerate(objects)]
    return pa.Table.from_pylist(rows, SCHEMA)


def prediction(*detections: tuple[str, float, float, float, float, float]) -> pb.Prediction:
    return pb.Prediction(
        detections=[
            pb.Detection(label=label, score=score, box=pb.Box(x_min=x0, y_min=y0, x_max=x1, y_max=y1))
            for label, score, x0, y0, x1, y1 in detections
        ]
    )


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
    assert statistics["object_width"] == {"min": 9, "p10": 9, "p50": 20, "p90": 20, "max": 20}
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


# Predictions.


@pytest.fixture
def codec(tmp_path: Path) -> ObjectDetectionCodec:
    (tmp_path / LABELS_FILE).write_text('["dog", "cat"]')
    (tmp_path / PREPROCESSING_FILE).write_text('{"height": 32, "width": 64, "nms_iou": 0.5, "score_threshold": 0.25}')
    return ObjectDetectionCodec(tmp_path)


def test_boxes_come_back_in_pixels_of_the_image_as_shown(codec: ObjectDetectionCodec) -> None:
    stream = io.BytesIO()
    turned = Image.fromarray(np.zeros((40, 60, 3), dtype=np.uint8))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(stream, "JPEG", exif=exif)
    instances = [pb.Instance(image=PNG), pb.Instance(image=stream.getvalue())]
    assert codec.encode(instances)["pixels"].shape == (2, 32, 64, 3)
    scores = np.array([[[0.2, 0.9], [0.3, 0.1], [0.25, 0.8]]] * 2, dtype=np.float32)
    boxes = np.array([[[0.5, 0.25, 1, 1], [0, 0, 0.5, 0.5], [0.5, 0.25, 1, 0.9]]] * 2, dtype=np.float32)
    first, second = codec.decode({"scores": scores, "boxes": boxes}, instances)
    # The second cat overlaps the first; as a dog the same box stands alone.
    assert [(d.label, round(d.score, 2)) for d in first.detections] == [("cat", 0.9), ("dog", 0.3), ("dog", 0.25)]
    box = first.detections[0].box
    assert (box.x_min, box.y_min, box.x_max, box.y_max) == (30, 10, 60, 40)
    assert (first.image_width, first.image_height) == (60, 40)
    box = second.detections[0].box
    assert (box.x_min, box.y_min, box.x_max, box.y_max) == (20, 15, 40, 60)
    assert (second.image_width, second.image_height) == (40, 60)


def test_thresholds_and_limits(codec: ObjectDetectionCodec) -> None:
    scores = np.linspace(0, 1, 101, dtype=np.float32)[None, :, None] * np.array([1, 0], dtype=np.float32)
    places = np.arange(101, dtype=np.float32)[None, :, None]
    boxes = np.concatenate([places, places, places + 1, places + 1], -1) / 102
    for instance, count in [
        (pb.Instance(image=PNG), 76),
        (pb.Instance(image=PNG, score_threshold=0.99), 2),
        (pb.Instance(image=PNG, score_threshold=1, max_detections=5), 1),
        (pb.Instance(image=PNG, score_threshold=0, max_detections=5), 5),
    ]:
        (found,) = codec.decode({"scores": scores, "boxes": boxes}, [instance])
        assert len(found.detections) == count
        assert [d.score for d in found.detections] == sorted((d.score for d in found.detections), reverse=True)
    (nothing,) = codec.decode({"scores": scores * 0, "boxes": boxes}, [pb.Instance(image=PNG)])
    assert (len(nothing.detections), nothing.image_width) == (0, 60)


def test_suppression_equals_torchvisions() -> None:
    import torch
    from torchvision.ops import batched_nms

    random = np.random.default_rng(0)
    for count in (0, 1, 7, 400):
        corners = random.random((count, 2, 2), dtype=np.float32)
        boxes = np.concatenate([corners.min(1), corners.max(1)], 1)
        classes = random.integers(0, 3, count)
        scores = -np.arange(count, dtype=np.float32)
        expected = batched_nms(torch.from_numpy(boxes), torch.from_numpy(scores), torch.from_numpy(classes), 0.4)
        assert suppress(boxes, classes, 0.4, count) == expected.tolist()
        assert suppress(boxes, classes, 0.4, 3) == expected.tolist()[:3]


def test_a_picture_shows_the_boxes() -> None:
    drawn = picture.draw(PNG, prediction(("dog", 0.9, 10, 20, 50, 35), ("dog", 0.4, 20, 25, 40, 30)), 0.5)
    pixels = images.decode(drawn.content)
    assert drawn.media_type == "image/png"
    assert pixels.shape == (40, 60, 3)
    edge = pixels[35, 30]
    assert (edge == pixels[30, 50]).all()
    assert (edge != 99).any()
    assert (pixels[28, 30] == 99).all()


# Metrics.


def test_perfect_and_useless_predictions() -> None:
    truth = [[entry("dog", 0, 0, 50, 50), entry("cat", 60, 0, 160, 100)], []]
    perfect = [prediction(("dog", 0.9, 0, 0, 50, 50), ("cat", 0.8, 60, 0, 160, 100)), prediction()]
    scores = metrics.score(truth, perfect)
    assert scores.metrics["map"] == pytest.approx(1)
    assert scores.metrics["map_small"] == -1
    assert scores.metrics["map_medium"] == pytest.approx(1)
    assert [(c.label, c.support) for c in scores.per_class] == [("cat", 1), ("dog", 1)]
    assert [c.metrics["ap"] for c in scores.per_class] == pytest.approx([1, 1])
    useless = metrics.score(truth, [prediction(), prediction(("horse", 0.5, 0, 0, 9, 9))])
    assert (useless.metrics["map"], useless.metrics["recall"]) == (0, 0)
    assert useless.metrics.keys() == scores.metrics.keys()


def test_average_precision_of_a_worked_case() -> None:
    """One hit of IoU 0.8, then a miss, then a hit of IoU 1, of two objects: precision 1 and 2/3 at IoU 0.5."""
    truth = [[entry("dog", 0, 0, 100, 100), entry("dog", 200, 0, 300, 100)]]
    found = [prediction(("dog", 0.9, 0, 0, 100, 80), ("dog", 0.8, 400, 0, 500, 100), ("dog", 0.7, 200, 0, 300, 100))]
    scores = metrics.score(truth, found)
    at_half = (51 * 1 + 50 * 2 / 3) / 101  # 101 recalls from 0 to 1.
    above = 51 / 3 / 101  # From 0.85 on the first one misses too: 1 of 3 is right, and the recall ends at a half.
    assert scores.metrics["map_50"] == pytest.approx(at_half)
    assert scores.metrics["map_75"] == pytest.approx(at_half)
    assert scores.metrics["map"] == pytest.approx((7 * at_half + 3 * above) / 10)
    (curve,) = scores.curves
    assert (list(curve.x), list(curve.y)) == ([0.5, 1], pytest.approx([1, 2 / 3]))


def test_crowds_count_neither_way() -> None:
    truth = [[entry("dog", 0, 0, 50, 50), entry("dog", 100, 0, 200, 100, crowd=True)]]
    found = [prediction(("dog", 0.9, 100, 0, 150, 50), ("dog", 0.8, 0, 0, 50, 50))]
    scores = metrics.score(truth, found)
    assert scores.metrics["map"] == pytest.approx(1)
    assert scores.per_class[0].support == 1
    assert metrics.score(truth, [prediction()]).metrics["map"] == 0


def test_without_any_object_there_is_nothing_to_measure() -> None:
    assert set(metrics.score([[]], [prediction(("dog", 0.9, 0, 0, 5, 5))]).metrics.values()) == {-1.0}


def test_the_threshold_is_that_of_the_best_f1() -> None:
    """Right, right, wrong, right, wrong of four objects: F1 is 0.4, 0.67, 0.57, 0.75, 0.67."""
    boxes = [entry("dog", x, 0, x + 50, 50) for x in (0, 100, 200, 300)]
    found = [(0.9, 0), (0.8, 100), (0.7, 400), (0.6, 200), (0.5, 500)]
    results = metrics.measure([boxes], [prediction(*(("dog", score, x, 0, x + 50, 50) for score, x in found))])
    assert metrics.best_threshold(results, 4) == 0.55
    nothing = metrics.measure([boxes], [prediction()])
    assert metrics.best_threshold(nothing, 4) == metrics.SCORE_THRESHOLD
    assert metrics.best_threshold(metrics.measure([], []), 0) == metrics.SCORE_THRESHOLD


def test_grades_tell_good_from_bad_images() -> None:
    truth = [[entry("dog", 0, 0, 50, 50)], [entry("dog", 0, 0, 50, 50)], [], []]
    hit, doubtful = prediction(("dog", 0.9, 0, 0, 50, 50)), prediction(("dog", 0.25, 0, 0, 50, 50))
    grades = ObjectDetection().grades(table(*truth), [hit, prediction(), prediction(), doubtful])
    assert grades == pytest.approx([1, 0, 1, 0.75])


def test_a_picture_leaves_out_what_only_an_evaluation_asks_for() -> None:
    (evaluated,) = ObjectDetection().instances(table([]))
    found = prediction(("dog", 0.1, 10, 20, 50, 35))
    found.score_threshold = 0.3
    plain = ObjectDetection().render(evaluated, prediction()).content
    assert ObjectDetection().render(evaluated, found).content == plain
    assert ObjectDetection().render(pb.Instance(image=PNG, score_threshold=0.05), found).content != plain


# Training.


@pytest.mark.parametrize(
    "architecture", ["ssdlite320_mobilenet_v3_large", "retinanet_resnet50_fpn", "fcos_resnet50_fpn"]
)
def test_boxes_and_scores_are_torchvisions(architecture: str, tmp_path: Path) -> None:
    import torch
    from torchvision.models.detection.image_list import ImageList

    from luthier.toolkit.backbones import Base
    from luthier_object_detection.creation import create

    base = Base(id="a", library="torchvision", architecture=architecture, weights="", mean=(0.5,) * 3, std=(0.5,) * 3)
    torch.manual_seed(0)
    detector = create(base, tmp_path, 3, (64, 96), pretrained=False, freeze=True).eval()
    core: Any = detector.core
    core.score_thresh, core.nms_thresh, core.detections_per_img, core.topk_candidates = 0.0, 1.0, 10**6, 10**6
    pixels = torch.randint(0, 256, (2, 64, 96, 3), dtype=torch.uint8)
    with torch.no_grad():
        scores, boxes = detector(pixels)
        images_ = detector.normalise(pixels)
        features = list(core.backbone(images_).values())
        outputs = core.head(features)
        anchors = core.anchor_generator(ImageList(images_, [(64, 96)] * 2), features)
        if "ssd" not in architecture:
            split = {name: list(output.split(detector.places, 1)) for name, output in outputs.items()}
            anchors = [list(each.split(detector.places)) for each in anchors]
            expected = core.postprocess_detections(split, anchors, [(64, 96)] * 2)
        else:
            expected = core.postprocess_detections(outputs, anchors, [(64, 96)] * 2)
    assert scores.shape == (2, len(detector.anchors), 3)
    for i in range(2):
        ours = (boxes[i, :, None] * detector.scale).expand(-1, 3, -1).reshape(-1, 4)
        order = scores[i].reshape(-1).argsort(stable=True)
        theirs = expected[i]["scores"].sort(stable=True)
        torch.testing.assert_close(scores[i].reshape(-1)[order], theirs.values)
        # Equal scores may stand in any order, so the boxes are compared as sets.
        torch.testing.assert_close(ours.sum(0), expected[i]["boxes"].sum(0), rtol=1e-4, atol=1e-2)
    target = {"boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0]]), "labels": torch.tensor([2])}
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    detector.train()
    for targets in ([target, nothing], [nothing, nothing]):
        loss = detector.loss(detector.outputs(pixels), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        # SSD learns nothing from an image without objects: it takes as many places as it has objects, times three.
        assert (loss.item() > 0) is (targets[0] is target or "ssd" not in architecture)
        assert loss.item() < 1e4


@pytest.fixture(scope="module")
def two_stages(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Faster R-CNN with random weights, and statistics of drawn images so that its features differ by place."""
    import torch

    from luthier.toolkit.backbones import Base
    from luthier_object_detection.creation import create

    base = Base(
        id="a",
        library="torchvision",
        architecture="fasterrcnn_mobilenet_v3_large_320_fpn",
        weights="",
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    detector = create(base, folder, 3, (96, 128), pretrained=False, freeze=True).train()
    with torch.no_grad():
        for layer in detector.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.momentum = None  # The mean of all batches.
        for _ in range(3):
            detector.outputs(torch.randint(0, 256, (8, 96, 128, 3), dtype=torch.uint8))
        detector.eval()
        for layer in (detector.core.rpn.head.cls_logits, detector.core.rpn.head.bbox_pred):
            layer.weight.mul_(20)
        detector.core.roi_heads.box_predictor.cls_score.weight.mul_(20)
    return detector


def test_two_stages_find_what_torchvision_finds(two_stages: Any) -> None:
    import torch
    from torchvision.models.detection.image_list import ImageList

    core = two_stages.core
    core.roi_heads.score_thresh, core.roi_heads.nms_thresh, core.roi_heads.detections_per_img = 0.0, 1.0, 10**6
    core.rpn.nms_thresh = 0.4
    pixels = torch.randint(0, 256, (2, 96, 128, 3), dtype=torch.uint8)
    with torch.no_grad():
        scores, boxes = two_stages(pixels)
        images_ = two_stages.normalise(pixels)
        features = core.backbone(images_)
        proposals, _ = core.rpn(ImageList(images_, [(96, 128)] * 2), features)
        expected, _ = core.roi_heads(features, proposals, [(96, 128)] * 2)
    assert scores.shape == (2, 150, 3)
    assert boxes.shape == (2, 150, 3, 4)
    for i in range(2):
        assert 20 < len(proposals[i]) < 150  # Some were suppressed, or this would show nothing.
        chosen = scores[i].sum(-1) > 0
        assert chosen.sum() == len(proposals[i])
        # torchvision leaves out empty boxes here.
        ours = (boxes[i, chosen] * two_stages.scale).reshape(-1, 4)
        real = ((ours[:, 2:] - ours[:, :2]) >= 0.01).all(-1)
        found, order = scores[i, chosen].reshape(-1)[real].sort(stable=True)
        theirs = expected[i]["scores"].sort(stable=True)
        torch.testing.assert_close(found, theirs.values, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(ours[real][order].sum(0), expected[i]["boxes"].sum(0), rtol=1e-4, atol=1e-2)


def test_two_stages_learn_from_images_with_and_without_objects(two_stages: Any) -> None:
    import torch

    target = {"boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0]]), "labels": torch.tensor([2])}
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    pixels = torch.randint(0, 256, (2, 96, 128, 3), dtype=torch.uint8)
    for mode in (False, True):
        two_stages.train(mode)
        for targets in ([target, nothing], [nothing, nothing]):
            loss = two_stages.loss(two_stages.outputs(pixels), targets)
            loss.backward()
            assert 0 < loss.item() < 1e4
        assert two_stages.core.rpn.training is mode
    assert two_stages.core.roi_heads.box_predictor.bbox_pred.weight.grad.abs().sum() > 0
    two_stages.eval()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_two_stages_export_with_any_number_of_images(two_stages: Any, tmp_path: Path) -> None:
    from luthier_object_detection import training

    model = training.Model(two_stages, ["a", "b", "c"], nms_iou=0.6)
    training.export(model, tmp_path)  # It compares batches of 1 and 3 with PyTorch itself.
    codec = ObjectDetectionCodec(tmp_path)
    scores = np.zeros((1, 2, 3), dtype=np.float32)
    scores[0, 1] = 0.0, 0.9, 0.8
    boxes = np.zeros((1, 2, 3, 4), dtype=np.float32)
    boxes[0, 1, 1], boxes[0, 1, 2] = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)
    (found,) = codec.decode({"scores": scores, "boxes": boxes}, [pb.Instance(image=PNG)])
    assert [entry.label for entry in found.detections] == ["b", "c"]
    assert found.detections[0].box.x_min == 0.0
    assert found.detections[1].box.x_min == found.image_width / 2


def test_a_checkpoint_of_other_classes_is_taken_and_one_that_lacks_layers_is_not(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from torchvision.models.detection import ssdlite320_mobilenet_v3_large

    from luthier.toolkit.backbones import Base
    from luthier_object_detection.creation import create

    state = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=5).state_dict()
    save_file(state, tmp_path / "w.safetensors")
    base = Base(
        id="ours",
        library="torchvision",
        architecture="ssdlite320_mobilenet_v3_large",
        weights="w.safetensors",
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )
    detector = create(base, tmp_path, 2, (64, 64), pretrained=True, freeze=True)
    ours = detector.core.state_dict()
    different = [
        name for name in state if state[name].shape != ours[name].shape or not torch.equal(state[name], ours[name])
    ]
    assert len(different) == 12  # Weight and bias of the last layer on each of six feature maps.
    assert all(".classification_head." in name for name in different)

    del state["head.regression_head.module_list.0.1.weight"]
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(InvalidArgument, match=r"ours lack 1 of .* head\.regression_head\.module_list\.0\.1\.weight"):
        create(base, tmp_path, 2, (64, 64), pretrained=True, freeze=True)
    unknown = replace(base, architecture="maskrcnn_resnet50_fpn")
    with pytest.raises(InvalidArgument, match="maskrcnn_resnet50_fpn is none of torchvision's detectors known here"):
        create(unknown, tmp_path, 2, (64, 64), pretrained=True, freeze=True)


def test_a_backbone_of_one_size_is_refused(tmp_path: Path) -> None:
    from luthier.toolkit.backbones import Base
    from luthier_object_detection.creation import create

    base = Base(
        id="a", library="timm", architecture="vit_tiny_patch16_224", weights="", mean=(0.5,) * 3, std=(0.5,) * 3
    )
    with pytest.raises(InvalidArgument, match="vit_tiny_patch16_224 takes images of one size alone"):
        create(base, tmp_path, 2, (64, 96), pretrained=False, freeze=True)


def test_early_layers_are_frozen(tmp_path: Path) -> None:
    import torch

    import tiny_timm
    from luthier.toolkit.backbones import read_base
    from luthier_object_detection.creation import create

    base = read_base(tiny_timm.write(tmp_path))
    detector = create(base, tmp_path, 2, (64, 64), pretrained=True, freeze=True).train()
    body = detector.core.backbone.body
    learning = {name for name, parameter in body.named_parameters() if parameter.requires_grad}
    assert not any(name.startswith(("conv_stem", "bn1", "blocks.0", "blocks.1")) for name in learning)
    assert any(name.startswith("blocks.2") for name in learning)
    before = {name: tensor.clone() for name, tensor in body.state_dict().items()}
    detector.loss(
        detector.outputs(torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)),
        [{"boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0]]), "labels": torch.tensor([1])}] * 2,
    )
    changed = {name for name, tensor in body.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    assert not any(name.startswith(("bn1", "blocks.0", "blocks.1")) for name in changed)


def test_augmented_boxes_follow_what_they_are_of() -> None:
    import torch

    from luthier_object_detection.augmentation import Augmentation

    torch.manual_seed(0)
    image = torch.zeros(100, 120, 3, dtype=torch.uint8)
    image[20:60, 30:80] = 255
    augment = Augmentation((64, 96), (0.0, 0.0, 0.0))
    seen = 0
    for _ in range(30):
        pixels, target = augment(image, torch.tensor([[30.0, 20.0, 80.0, 60.0]]), torch.tensor([1]))
        assert pixels.shape == (64, 96, 3)
        if not len(target["boxes"]):
            continue
        seen += 1
        y, x = np.nonzero(pixels[..., 0].numpy() > 127)
        expected = [x.min(), y.min(), x.max() + 1, y.max() + 1]
        assert target["boxes"][0].tolist() == pytest.approx(expected, abs=1.5)
        assert target["labels"].tolist() == [1]
    assert seen > 20
    pixels, target = augment(image, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert pixels.shape == (64, 96, 3)
    assert target["boxes"].shape == (0, 4)


@pytest.mark.realdata
def test_blood_cells(realdata: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bccd.zip", "w") as archive:
        folder = realdata / "data" / "det-bccd-voc"
        for path in folder.rglob("*"):
            archive.write(path, path.relative_to(folder).as_posix())
    file = DataFile(path=tmp_path / "bccd.zip", name="bccd.zip", format="", options={"boxes": "clip"})
    built = datasets.build(ObjectDetection(), [file], Split(), tmp_path / "built")
    assert built.num_examples == {"train": 205, "validation": 87, "test": 72}
    assert {c["label"]: c["train"] for c in built.statistics["classes"]} == {"Platelets": 209, "RBC": 2381, "WBC": 214}
    assert [(w.field, w.count) for w in built.warnings] == [("boxes", 2)]
