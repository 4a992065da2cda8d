"""Images with masks."""

import json

from bad_data.case import Bad, bomb, mask, picture

TASK = "semantic-segmentation"
PLAIN = mask(*["0011"] * 4)
GOOD = {f"images/{i}.png": picture(width=4, height=4, shade=20 * i) for i in range(1, 6)} | {
    f"masks/{i}.png": PLAIN for i in range(1, 6)
}
CLASSES = "sky\nsea\n"


def coco(segmentation: object) -> str:
    return json.dumps(
        {
            "images": [{"id": 1, "file_name": "1.png", "width": 4, "height": 4}],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": segmentation, "iscrowd": 0}],
            "categories": [{"id": 1, "name": "sea"}],
        }
    )


CASES = (
    Bad(
        "segmentation-no-masks",
        TASK,
        {name: data for name, data in GOOD.items() if "images" in name},
        {"data.zip": "the layout is not known: there are neither masks beside images, such as images/a.jpg and m"},
    ),
    Bad(
        "segmentation-one-mask-missing",
        TASK,
        {n: d for n, d in GOOD.items() if n != "masks/3.png"},
        {"data.zip/images/3.png:image": "there is no mask of its name"},
    ),
    Bad(
        "segmentation-other-size",
        TASK,
        GOOD | {"masks/3.png": mask("01", "01")},
        {"data.zip/masks/3.png:mask": "the mask has 2x2 pixels, its image 4x4 as it is shown"},
    ),
    Bad(
        "segmentation-unknown-values",
        TASK,
        GOOD | {"masks/3.png": mask(*["0027"] * 4), "classes.txt": CLASSES},
        {"data.zip/masks/3.png:mask": "classes.txt does not name the values 2 (4 pixels), 7 (4 pixels)"},
    ),
    Bad(
        "segmentation-one-class",
        TASK,
        {n: mask(*["0000"] * 4) if "masks" in n else d for n, d in GOOD.items()},
        {"mask": "the masks of train show 1 class (`0`)"},
    ),
    Bad(
        "segmentation-unknown-colours",
        TASK,
        {
            "images/3.png": GOOD["images/3.png"],
            "masks/3.png": picture(width=4, height=4),
            "classes.csv": "name,color\nsky,#000000\nsea,#ffffff\n",
        },
        {"data.zip/masks/3.png:mask": "classes.csv does not name the colours #5a781e (16 pixels)"},
    ),
    Bad(
        "segmentation-damaged",
        TASK,
        GOOD | {"images/1.png": b"x", "masks/2.png": b"x", "images/3.png": bomb()},
        {
            "data.zip/images/1.png:image": "the bytes are none of JPEG, PNG, WEBP, BMP, or damaged at the start",
            "data.zip/masks/2.png:mask": "the bytes are none of JPEG, PNG, WEBP, BMP, or damaged at the start",
            "data.zip/images/3.png:image": "the image has 60000x60000 pixels",
        },
    ),
    Bad(
        "segmentation-masks-are-jpegs",
        TASK,
        {"images/1.png": GOOD["images/1.png"], "masks/1.jpg": picture("JPEG", 4, 4)},
        {"data.zip/masks/1.jpg:mask": "JPEG blurs the values of a mask"},
    ),
    Bad(
        "segmentation-classes-without-header",
        TASK,
        GOOD | {"classes.csv": "sky,0\nsea,1\n"},
        {"data.zip/classes.csv": "the header needs the column `name`, and `value`"},
    ),
    Bad(
        "segmentation-polygons",
        TASK,
        {"1.png": picture(width=4, height=4), "a.json": coco([[0, 0, 1, 1]])},
        {"data.zip/a.json:annotations": "annotation 1: a polygon is a list of at least three points, x and y by turns"},
    ),
    Bad(
        "segmentation-runs",
        TASK,
        {"1.png": picture(width=4, height=4), "a.json": coco({"size": [4, 4], "counts": [3, 99]})},
        {"data.zip/a.json:annotations": "annotation 1: its `counts` are not run lengths"},
    ),
    Bad(
        "segmentation-run-of-another-size",
        TASK,
        {"1.png": picture(width=4, height=4), "a.json": coco({"size": [9, 9], "counts": [81]})},
        {"data.zip/a.json:annotations": "annotation 1: its run lengths are of the size [9, 9], the image of [4, 4]"},
    ),
)
