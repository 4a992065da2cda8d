"""Images with boxes, as COCO, Pascal VOC and YOLO write them."""

import json
from typing import Any

from bad_data.case import Bad, bomb, picture

TASK = "object-detection"


def coco(*boxes: Any, categories: Any = ({"id": 1, "name": "cup"},), images: Any = None) -> str:
    """An annotation file of two images; each box has category 1 and belongs to the first."""
    listed = [{"id": i, "file_name": f"{i}.png", "width": 16, "height": 12} for i in (1, 2)]
    boxes = boxes or ([1, 1, 5, 5],)
    entries = [
        box if isinstance(box, dict) else {"id": i, "image_id": 1, "category_id": 1, "bbox": box}
        for i, box in enumerate(boxes, 1)
    ]
    return json.dumps({"images": images or listed, "annotations": entries, "categories": categories})


def voc(*objects: str, name: str = "1.png", size: str = "<width>16</width><height>12</height>") -> str:
    return f"<annotation><filename>{name}</filename><size>{size}</size>{''.join(objects)}</annotation>"


def thing(left: object, top: object, right: object, bottom: object, name: str = "cup") -> str:
    corners = f"<xmin>{left}</xmin><ymin>{top}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax>"
    return f"<object><name>{name}</name><bndbox>{corners}</bndbox></object>"


GOOD = {"1.png": picture(shade=10), "2.png": picture(shade=20)}
YOLO = {f"images/{name}": data for name, data in GOOD.items()} | {
    "data.yaml": "names: [cup, jug]\n",
    "labels/2.txt": "0 0.5 0.5 0.2 0.2\n",
}
VOC = {f"JPEGImages/{name}": data for name, data in GOOD.items()} | {
    "Annotations/2.xml": voc(thing(1, 1, 5, 5), name="2.png")
}

CASES = (
    Bad(
        "detection-no-layout",
        TASK,
        GOOD,
        {"data.zip": "none of the layouts is recognised: COCO has a JSON file of images, annotations and categor"},
    ),
    Bad(
        "detection-no-json",
        TASK,
        GOOD | {"a.json": "{"},
        {
            "data.zip/a.json": "the file is not JSON in UTF-8",
            "data.zip": "no JSON file in it lists `images`, `annotations` and `categories`",
        },
        format="coco",
    ),
    Bad(
        "detection-coco-without-images",
        TASK,
        {"a.json": coco(), "b.txt": ""},
        {
            "data.zip/a.json:row 1:images.file_name": "`1.png`: there is no such image in the zip",
            "data.zip/a.json:row 2:images.file_name": "`2.png`: there is no such image in the zip",
        },
    ),
    Bad(
        "detection-coco-of-others",
        TASK,
        GOOD
        | {
            "a.json": coco(
                {"id": 1, "image_id": 9, "category_id": 1, "bbox": [1, 1, 5, 5]},
                {"id": 2, "image_id": 1, "category_id": 9, "bbox": [1, 1, 5, 5]},
                {"id": 3, "image_id": 1, "category_id": 1},
                {"id": 4, "image_id": 1, "category_id": 1, "bbox": [1, 1, "wide", 5]},
                {"id": 5, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5]},
            )
        },
        {
            "data.zip/a.json:row 3:annotations": "the entry lacks bbox",
            "data.zip/a.json:row 1:annotations.image_id": "`9` is the id of no image",
            "data.zip/a.json:row 2:annotations.category_id": "`9` is the id of no category",
            "data.zip/a.json:row 4:annotations.bbox": "`[1, 1, 'wide', 5]` is not four finite numbers",
            "data.zip/a.json:row 5:annotations.bbox": "`[1, 1, 5]` is not four finite numbers: x, y, width, height",
        },
    ),
    Bad(
        "detection-coco-ids-twice",
        TASK,
        GOOD
        | {
            "a.json": coco(
                images=[
                    {"id": 1, "file_name": "1.png", "width": 16, "height": 12},
                    {"id": 1, "file_name": "2.png", "width": 16, "height": 12},
                ],
                categories=[{"id": 1, "name": "cup"}, {"id": 1, "name": "jug"}],
            )
        },
        {
            "data.zip/a.json:row 2:categories.id": "the id `1` occurs twice",
            "data.zip/a.json:row 2:images.id": "the id `1` occurs twice",
        },
    ),
    Bad(
        "detection-boxes-outside",
        TASK,
        GOOD | {"a.json": coco([1, 1, 40, 5], [20, 1, 5, 5], [3, 3, 0, 5])},
        {
            "data.zip/a.json:row 1:annotations.bbox": "the box sticks out of its image of 16x12 pixels: 1, 1, 41, 6",
            "data.zip/a.json:row 2:annotations.bbox": "the box lies outside its image of 16x12 pixels: 20, 1, 25, 6",
            "data.zip/a.json:row 3:annotations.bbox": "the box has no area: 3, 3, 3, 8",
        },
        options={"boxes": "refuse"},
    ),
    Bad(
        "detection-no-box-left",
        TASK,
        GOOD | {"a.json": coco([20, 1, 5, 5])},
        {"objects": "no image of train shows an object"},
    ),
    Bad(
        "detection-other-size",
        TASK,
        GOOD | {"a.json": coco().replace('"width": 16', '"width": 32')},
        {"data.zip/a.json:size": "1.png is stated as 32x12 pixels and is shown as 16x12; 2.png is stated as 32x12"},
    ),
    Bad(
        "detection-damaged-images",
        TASK,
        {"1.png": b"no image", "2.png": bomb(), "a.json": coco()},
        {
            "data.zip/1.png:image": "the bytes are none of JPEG, PNG, WEBP, BMP, or damaged at the start",
            "data.zip/2.png:image": "the image has 60000x60000 pixels",
        },
    ),
    Bad(
        "detection-nan",
        TASK,
        GOOD | {"a.json": coco([1, 1, float("nan"), 5])},
        {"data.zip/a.json:row 1:annotations.bbox": "`[1, 1, nan, 5]` is not four finite numbers: x, y, width, height"},
    ),
    Bad(
        "detection-voc-not-xml",
        TASK,
        VOC | {"Annotations/1.xml": "<annotation>"},
        {"data.zip/Annotations/1.xml": "the file is not XML that is read"},
    ),
    Bad(
        "detection-voc-entities",
        TASK,
        VOC | {"Annotations/1.xml": "<!DOCTYPE a [<!ENTITY b 'c'>]>" + voc()},
        {"data.zip/Annotations/1.xml": "it declares a document type, which is not read"},
    ),
    Bad(
        "detection-voc-boxes",
        TASK,
        VOC | {"Annotations/1.xml": voc(thing(1, 1, "x", 5), thing(1, 1, 5, 5, name=""))},
        {
            "data.zip/Annotations/1.xml:row 1:object/bndbox/xmax": "`x` is not a finite number",
            "data.zip/Annotations/1.xml:row 2:object/name": "the object has no name",
        },
    ),
    Bad(
        "detection-voc-of-no-image",
        TASK,
        VOC | {"Annotations/3.xml": voc(thing(1, 1, 5, 5), name="3.png")},
        {"data.zip/Annotations/3.xml:filename": "`3.png`: there is no such image in the zip"},
    ),
    Bad(
        "detection-yolo-lines",
        TASK,
        YOLO | {"labels/1.txt": "0 0.5 0.5 0.2\n2 0.5 0.5 0.2 0.2\n0 0.5 x 0.2 0.2\n0 120 80 20 20\n"},
        {
            "data.zip/labels/1.txt:row 1": "4 values",
            "data.zip/labels/1.txt:row 2:class": "there are classes 0 to 1, not `2`",
            "data.zip/labels/1.txt:row 3": "`x` is not a finite number",
            "data.zip/labels/1.txt:row 4:box": "coordinates are shares of the image's sides",
        },
    ),
    Bad(
        "detection-yolo-without-names",
        TASK,
        YOLO | {"data.yaml": "nc: 2\n"},
        {
            "data.zip/data.yaml:names": "`names` must list the classes",
            "data.zip/labels/2.txt:row 1:class": "there are no classes, not `0`",
        },
    ),
    Bad(
        "detection-yolo-of-no-image",
        TASK,
        YOLO | {"labels/7.txt": "0 0.5 0.5 0.2 0.2\n"},
        {"data.zip/labels/7.txt": "there is no image to these labels"},
    ),
)
