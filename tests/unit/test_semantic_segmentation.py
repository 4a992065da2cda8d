"""Data of semantic segmentation, and what is scored and drawn."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from luthier import datasets, images, suggestions
from luthier.distribution import spread
from luthier.errors import InvalidArgument, InvalidData
from luthier.task import DataFile, Split
from luthier.tasks.semantic_segmentation.v1 import semantic_segmentation_pb2 as pb
from luthier_semantic_segmentation import SemanticSegmentation, drawing, label_maps
from luthier_semantic_segmentation.rows import SCHEMA

TASK = SemanticSegmentation()
HEIGHT, WIDTH = 6, 8
OLD_NUMPY = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
"""What pycocotools 2.0 decodes masks with was written for NumPy 1."""


def picture(height: int = HEIGHT, width: int = WIDTH, level: int = 100) -> bytes:
    return images.encode_png(np.full((height, width, 3), level, dtype=np.uint8))


def png(mask: Any) -> bytes:
    return images.encode_png(np.array(mask, dtype=np.uint8))


def halves(left: int = 0, right: int = 1) -> np.ndarray:
    """A mask of two values side by side."""
    return np.repeat([[left] * (WIDTH // 2) + [right] * (WIDTH // 2)], HEIGHT, axis=0).astype(np.uint8)


def saved(image: Image.Image, format: str = "PNG") -> bytes:
    stream = io.BytesIO()
    image.save(stream, format)
    return stream.getvalue()


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., dict[str, pa.Table]]:
    """Reads a zip with the given files; warnings go to `read.warnings`."""

    def read(files: Mapping[str, bytes | str], *, format: str = "", ignore: str = "auto") -> dict[str, pa.Table]:
        path = tmp_path / "data.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        file = DataFile(path=path, name="data.zip", format=format, options={"ignore": ignore})
        found = TASK.read(file)
        assert isinstance(found, Mapping)
        read.warnings = [warning.message for warning in file.warnings]  # type: ignore[attr-defined]
        return dict(found)

    return read


def problems(call: Callable[[], object]) -> dict[str, str]:
    """What InvalidData says, by file and field."""
    with pytest.raises(InvalidData) as caught:
        call()
    return caught.value.violations


# Mask files.


@pytest.mark.parametrize(
    ("image", "mask", "part"),
    [
        ("images/a.png", "masks/a.png", ""),
        ("images/a.png", "annotations/trimaps/a.png", ""),
        ("JPEGImages/a.png", "SegmentationClass/a.png", ""),
        ("a.png", "a_mask.png", ""),
        ("photos/x/a.png", "labels/x/a.png", ""),
        ("train/images/a.png", "train/masks/a.png", "train"),
        ("images/val2017/a.png", "annotations/val2017/a.png", "validation"),
        ("test/a.png", "testannot/a.png", "test"),
        ("train/a.png", "train_labels/a_L.png", "train"),
        ("valid/a.png", "valid/a_mask.png", "validation"),
        ("images/a_gt.png", "masks/a_gt.png", ""),
    ],
)
def test_pairs_are_found_by_their_names(read: Any, image: str, mask: str, part: str) -> None:
    tables = read({image: picture(), mask: png(halves()), "notes/read.me": "hello", "notes/b.xml": "<a/>"})
    assert tables.keys() == {part}
    assert tables[part].column_names == SCHEMA.names
    assert tables[part]["labels"].to_pylist() == [["0", "1"]]


def test_trimaps_beside_boxes_are_read_as_they_are(read: Any) -> None:
    files = {
        "pets/images/cat.jpg": saved(Image.new("RGB", (WIDTH, HEIGHT)), "JPEG"),
        "pets/annotations/trimaps/cat.png": png(halves(1, 3)),
        "pets/annotations/xmls/cat.xml": "<annotation/>",
        "pets/README.md": "pets",
    }
    table = read(files)[""]
    assert table["values"].to_pylist() == [[1, 3]]
    assert table["mask"].to_pylist() == [files["pets/annotations/trimaps/cat.png"]]
    assert "classes.csv" in read.warnings[0]


@pytest.mark.parametrize(
    "mask",
    [
        saved(Image.fromarray(halves()).convert("RGB")),
        saved(Image.fromarray(halves().astype(np.uint16))),
        saved(Image.fromarray(halves()), "BMP"),
    ],
    ids=["grey as RGB", "16 bits", "BMP"],
)
def test_masks_are_kept_as_values_of_a_byte(read: Any, mask: bytes) -> None:
    table = read({"images/a.png": picture(), "masks/a.png": mask})[""]
    kept = images.decode_values(table["mask"][0].as_py())
    assert kept.dtype == np.uint8
    assert (kept == halves()).all()


def test_palettes_are_read_as_their_indices(read: Any) -> None:
    mask = Image.fromarray(halves(0, 15)).convert("P")
    mask.putdata(halves(0, 15).ravel().tolist())
    mask.putpalette([0, 0, 0] * 15 + [224, 224, 192])
    table = read({"images/a.png": picture(), "masks/a.png": saved(mask)})[""]
    assert table["values"].to_pylist() == [[0, 15]]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("classes.txt", "sky\nsea\n"),
        ("classes.csv", "value,name\n1,sea\n0,sky\n"),
        ("masks/_classes.csv", "Pixel Value, Class\n0, sky\n1, sea\n"),
    ],
)
def test_values_are_named_by_a_file(read: Any, name: str, content: str) -> None:
    table = read({"images/a.png": picture(), "masks/a.png": png(halves()), name: content})[""]
    assert table["labels"].to_pylist() == [["sky", "sea"]]
    assert read.warnings == []


def test_several_values_may_be_one_class(read: Any) -> None:
    csv = "value,name\n0,background\n1,person\n2,person\n"
    table = read({"images/a.png": picture(), "masks/a.png": png(halves(1, 2)), "classes.csv": csv})[""]
    assert table["labels"].to_pylist() == [["person", "person"]]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("labelmap.txt", "# label:color_rgb:parts:actions\nsky:0,0,255::\nsea:0,128,0::\n"),
        ("classes.csv", "color,name\n#0000FF,sky\n#008000,sea\n#e0e0c0,\n"),
        ("class_dict.csv", "name,r,g,b\nsky,0,0,255\nsea,0,128,0\n"),
    ],
)
def test_colours_are_named_by_a_file(read: Any, name: str, content: str) -> None:
    colours = np.array([[0, 0, 255], [0, 128, 0]], dtype=np.uint8)[halves()]
    files = {"images/a.png": picture(), "masks/a.png": images.encode_png(colours), name: content}
    table = read(files)[""]
    assert table["labels"].to_pylist() == [["sky", "sea"]]
    assert (images.decode_values(table["mask"][0].as_py()) == halves()).all()


def test_colours_are_ignored_by_option(read: Any) -> None:
    colours = np.array([[0, 0, 255], [224, 224, 192]], dtype=np.uint8)[halves()]
    files = {
        "images/a.png": picture(),
        "masks/a.png": images.encode_png(colours),
        "classes.csv": "color,name\n#0000ff,a",
    }
    assert "#e0e0c0 (24 pixels)" in problems(lambda: read(files))["data.zip/masks/a.png:mask"]
    assert read(files, ignore="#e0e0c0")[""]["labels"].to_pylist() == [["a"]]


@pytest.mark.parametrize(
    ("values", "ignore", "expected"),
    [
        ([(0, 1), (1, 255)], "auto", [[0, 1], [1]]),
        ([(0, 255), (0, 255)], "auto", [[0, 255], [0, 255]]),
        ([(0, 1), (1, 255)], "none", [[0, 1], [1, 255]]),
        ([(0, 1), (1, 255)], "0", [[1], [1, 255]]),
    ],
    ids=["255", "black and white", "none", "0"],
)
def test_values_are_ignored(read: Any, values: list[tuple[int, int]], ignore: str, expected: list[list[int]]) -> None:
    files = {f"images/{i}.png": picture() for i in range(2)}
    files |= {f"masks/{i}.png": png(halves(*pair)) for i, pair in enumerate(values)}
    assert read(files, ignore=ignore)[""]["values"].to_pylist() == expected


@pytest.mark.parametrize("ignore", ["256", "black", "", "#12", "#123456"])
def test_what_cannot_be_ignored_is_refused(read: Any, ignore: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        read({"images/a.png": picture(), "masks/a.png": png(halves())}, ignore=ignore)
    assert caught.value.violations.keys() == {"options.ignore"}


def test_lists_of_pascal_voc_divide_and_leave_out(read: Any) -> None:
    files: dict[str, bytes | str] = {f"VOC/JPEGImages/{name}.jpg": picture() for name in "abcd"}
    files |= {f"VOC/SegmentationClass/{name}.png": png(halves()) for name in "abc"}
    files |= {f"VOC/SegmentationObject/{name}.png": png(halves(3, 4)) for name in "abc"}
    files |= {"VOC/ImageSets/Segmentation/train.txt": "a\n", "VOC/ImageSets/Segmentation/val.txt": "b\n"}
    tables = read(files)
    assert {part: table["name"].to_pylist() for part, table in tables.items()} == {
        "train": ["JPEGImages/a.jpg"],
        "validation": ["JPEGImages/b.jpg"],
    }
    assert any("PNG" in warning for warning in read.warnings)


def test_every_problem_of_mask_files_is_told_at_once(read: Any) -> None:
    colourful = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    colourful[0, 0] = (255, 0, 0)
    masks = {
        "lonely": png(halves()),
        "small": png(halves()[:3]),
        "broken": png(halves())[:44],
        "coloured": images.encode_png(colourful),
        "deep": saved(Image.fromarray(halves().astype(np.uint16) * 1000)),
        "blurred": saved(Image.fromarray(halves()), "JPEG"),
        "unknown": png(halves(0, 7)),
        "bad": png(halves()),
    }
    files: dict[str, bytes | str] = {f"masks/{name}.png": mask for name, mask in masks.items()}
    files |= {f"images/{name}.png": picture() for name in masks if name != "lonely"}
    files |= {"images/bad.png": b"GIF89a", "images/alone.png": picture(), "classes.txt": "sky\nsea\n"}
    found = problems(lambda: read(files))
    expected = {
        "images/alone.png:image": "no mask of its name",
        "masks/lonely.png:mask": "no image of its name",
        "masks/small.png:mask": "8x3 pixels, its image 8x6",
        "masks/broken.png:mask": "damaged or cut short",
        "masks/coloured.png:mask": "stores colours",
        "masks/deep.png:mask": "up to 1000",
        "masks/blurred.png:mask": "JPEG blurs",
        "masks/unknown.png:mask": "7 (24 pixels)",
        "images/bad.png:image": "none of JPEG",
    }
    assert found.keys() == {f"data.zip/{place}" for place in expected}
    for place, why in expected.items():
        assert why in found[f"data.zip/{place}"]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("number,name\n0,sky\n", "`value`"),
        ("value,name\n0,sky\n300,sea\n", "300 is no value"),
        ("value,name\n0,sky\n0,sea\n", "`sky` and `sea`"),
        ("value,name\nzero,sky\n", "`zero`"),
        ("color,name\nred,sky\n", "#rrggbb"),
        ("color,name\n#000000,sky\n#000000,sea\n", "twice"),
        ("value,name\n", "names no class"),
    ],
)
def test_files_of_names_are_checked(read: Any, content: str, why: str) -> None:
    found = problems(lambda: read({"images/a.png": picture(), "masks/a.png": png(halves()), "classes.csv": content}))
    assert why in found["data.zip/classes.csv"]


def test_an_unknown_layout_is_refused(read: Any) -> None:
    assert (
        "images/a.jpg and masks/a.png" in problems(lambda: read({"x/a.jpg": picture(), "notes.json": "[]"}))["data.zip"]
    )
    assert "no image with a mask" in problems(lambda: read({"a.txt": "a"}, format="masks"))["data.zip"]
    assert "no JSON file" in problems(lambda: read({"a.txt": "a"}, format="coco"))["data.zip"]


# COCO.


def coco(annotations: list[dict[str, Any]], **more: Any) -> str:
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}],
        "annotations": [{"id": i, "image_id": 1, "category_id": 7, **entry} for i, entry in enumerate(annotations)],
        "categories": [{"id": 9, "name": "cat"}, {"id": 7, "name": "dog"}],
    }
    return json.dumps(content | more)


@OLD_NUMPY
def test_coco_is_painted_as_its_own_tools_do_with_the_small_over_the_large(read: Any) -> None:
    whole = [[0.0, 0.0, 8.0, 0.0, 8.0, 5.0, 0.0, 5.0]]
    triangle = [[1.0, 1.0, 6.0, 1.5, 3.0, 4.7]]
    corner = np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F")
    corner[4:, :2] = 1
    packed = coco_mask.encode(corner)
    plain = {"size": [HEIGHT, WIDTH], "counts": [0, HEIGHT, HEIGHT * (WIDTH - 1)]}
    annotations = [
        {"segmentation": triangle, "category_id": 9},
        {"segmentation": whole},
        {"segmentation": {"size": [HEIGHT, WIDTH], "counts": packed["counts"].decode()}, "category_id": 9},
        {"segmentation": plain, "iscrowd": 1},
    ]
    tables = read({"images/a.png": picture(), "annotations/instances_val.json": coco(annotations)})
    table = tables["validation"]
    mask = images.decode_values(table["mask"][0].as_py())

    def region(polygons: list[list[float]]) -> np.ndarray:
        return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, HEIGHT, WIDTH))).astype(bool)

    expected = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    expected[region(whole)] = 1
    expected[region(triangle)] = 2
    expected[:, 0] = 1
    expected[corner.astype(bool)] = 2
    assert (mask == expected).all()
    assert table["labels"].to_pylist() == [["background", "dog", "cat"]]


def test_every_problem_of_coco_is_told_at_once(read: Any) -> None:
    size = [HEIGHT, WIDTH]
    annotations: list[dict[str, Any]] = [
        {"segmentation": [[0, 0, 1, 1]]},
        {"segmentation": [[0, 0, 1, "a", 2, 2]]},
        {"segmentation": [[0, 0, 1e9, 0, 5, 5]]},
        {"segmentation": {"size": [1, 1], "counts": [1]}},
        {"segmentation": {"size": size, "counts": [1, 2]}},
        {"segmentation": {"size": size, "counts": "\t"}},
        {"bbox": [0, 0, 1, 1]},
        {"image_id": 5, "segmentation": []},
        {"category_id": 5, "segmentation": []},
        {"image_id": [1]},
    ]
    pictures = [
        {"id": 1, "file_name": "a.png", "height": HEIGHT, "width": WIDTH},
        {"id": 2, "file_name": "b.png", "height": HEIGHT, "width": WIDTH},
        {"id": 3, "file_name": "c.png", "height": 2 * HEIGHT, "width": WIDTH},
        {"id": 4, "file_name": "d.png", "height": HEIGHT, "width": WIDTH},
        {"id": "x"},
        {"id": 1, "file_name": "a.png", "height": HEIGHT, "width": WIDTH},
        {"id": 6, "file_name": "a.png", "height": HEIGHT, "width": WIDTH},
    ]
    categories = [{"id": 7, "name": "dog"}, {"id": 7, "name": "cat"}, {"id": 8}]
    content = coco(annotations, images=pictures, categories=categories)
    found = problems(lambda: read({"a.png": picture(), "c.png": picture(), "d.png": b"no image", "x.json": content}))
    fields = ("images", "annotations", "categories")
    assert found.keys() == {*(f"data.zip/x.json:{field}" for field in fields), "data.zip/d.png:image"}
    for why in ("b.png is not in the zip", "8x12 pixels here", "lacks `id`", "id 1 stands", "so is image 1 of x.json"):
        assert why in found["data.zip/x.json:images"]
    for why in ("an id stands in it twice", "1 categories lack"):
        assert why in found["data.zip/x.json:categories"]
    assert "lacks `image_id`" in found["data.zip/x.json:annotations"]
    for index in range(len(annotations) - 1):
        assert f"annotation {index}" in found["data.zip/x.json:annotations"]


# The data set as a whole.


def test_a_data_set_is_built_and_described(read: Any, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    files: dict[str, bytes] = {}
    for i in range(30):
        files[f"images/{i}.png"] = images.encode_png(random.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8))
        files[f"masks/{i}.png"] = png(halves(0, 2))
    read(files)
    file = DataFile(path=tmp_path / "data.zip", name="data.zip", format="", options={"ignore": "auto"})
    built = datasets.build(TASK, [file], Split(), tmp_path / "built")
    assert sum(built.num_examples.values()) == 30
    train = built.num_examples["train"] * HEIGHT * WIDTH // 2
    assert [(c["label"], c["train"]) for c in built.statistics["classes"]] == [("0", train), ("2", train)]
    assert built.statistics["width_pixels"] == spread([WIDTH] * 30)
    assert suggestions.size_of(built.statistics) == max(WIDTH, HEIGHT)


def table(masks: list[np.ndarray], labels: Mapping[int, str], start: int = 0) -> pa.Table:
    return pa.table(
        {
            "image": [picture(*mask.shape, level=start + i) for i, mask in enumerate(masks)],
            "mask": [png(mask) for mask in masks],
            "values": [[v for v in np.unique(mask).tolist() if v in labels] for mask in masks],
            "labels": [[labels[v] for v in np.unique(mask).tolist() if v in labels] for mask in masks],
            "name": [f"{i}.png" for i in range(len(masks))],
        },
        SCHEMA,
    )


def test_what_cannot_be_learned_is_told() -> None:
    names = {0: "sky", 1: "sea", 2: "gull"}
    empty = SCHEMA.empty_table()
    one_class = {"train": table([halves(1, 1)], names), "validation": empty, "test": empty}
    assert [(fatal, "1 class (`sea`)" in p.message) for fatal, p in TASK.validate(one_class)] == [(True, True)]
    parts = {
        "train": table([halves(), halves(9, 9)], names),
        "validation": table([halves()], names),
        "test": table([halves(1, 2)], names, start=50),
    }
    found = list(TASK.validate(parts))
    assert not any(fatal for fatal, _ in found)
    messages = " ".join(problem.message for _, problem in found)
    for why in (
        "test shows classes that train lacks and no model can learn: `gull`",
        "1 masks of train",
        "1 images of",
    ):
        assert why in messages


# Scores.


def test_scores_by_hand() -> None:
    truth = np.array([[0, 0, 1, 1], [0, 0, 1, 255]])
    predicted = np.array([[0, 1, 1, 1], [0, 0, 2, 0]], dtype=np.uint8)
    prediction = label_maps.to_prediction(predicted, ["sky", "sea", "gull", "never"], pb.MASK_FORMAT_RLE)
    evaluation = TASK.score(table([truth], {0: "sky", 1: "sea"}), [prediction])
    # sky: 3 right, 4 true, 3 predicted. sea: 2 right, 3 true, 3 predicted. gull: predicted once.
    assert evaluation.metrics["miou"] == pytest.approx((3 / 4 + 2 / 4 + 0) / 3)
    assert evaluation.metrics["pixel_accuracy"] == pytest.approx(5 / 7)
    assert evaluation.metrics["mean_accuracy"] == pytest.approx((3 / 4 + 2 / 3) / 2)
    assert {c.label: (c.support, round(c.metrics["iou"], 4)) for c in evaluation.per_class} == {
        "sky": (4, 0.75),
        "sea": (3, 0.5),
        "gull": (0, 0.0),
    }
    assert list(evaluation.confusion_matrix.counts)[:4] == [3, 1, 0, 0]


def test_classes_are_compared_by_name_and_unknown_ones_count_as_missed() -> None:
    prediction = label_maps.to_prediction(halves(1, 0), ["sea", "sky"], pb.MASK_FORMAT_PNG)
    evaluation = TASK.score(table([halves(0, 1)], {0: "sky", 1: "sea"}), [prediction])
    assert evaluation.metrics["miou"] == 1
    evaluation = TASK.score(table([halves(0, 1)], {0: "sky", 1: "gull"}), [prediction])
    assert evaluation.metrics["miou"] == pytest.approx(1 / 3)


def test_a_prediction_is_drawn_in_colours_with_a_legend() -> None:
    prediction = label_maps.to_prediction(halves(), ["sky", "sea"], pb.MASK_FORMAT_RLE)
    drawn = TASK.render(pb.Instance(image=picture()), prediction)
    shown = images.decode(drawn.content)
    assert drawn.media_type == "image/png"
    assert shown.shape[1] == WIDTH
    assert shown.shape[0] > HEIGHT
    assert (shown[2, 6] == (100 + drawing.class_colours(2)[1].astype(int)) // 2).all()


@pytest.mark.realdata
def test_trimaps_of_pets_become_a_data_set(realdata: Path, tmp_path: Path) -> None:
    source = realdata / "data" / "seg-cls-det-pets3"
    with zipfile.ZipFile(tmp_path / "pets.zip", "w") as archive:
        for path in sorted(source.rglob("*")):
            archive.write(path, path.relative_to(source.parent))
    file = DataFile(path=tmp_path / "pets.zip", name="pets.zip", format="", options={"ignore": "auto"})
    built = datasets.build(TASK, [file], Split(), tmp_path / "built")
    assert built.num_examples == {"train": 143, "validation": 19, "test": 18}
    assert [entry["label"] for entry in built.statistics["classes"]] == ["1", "2", "3"]
