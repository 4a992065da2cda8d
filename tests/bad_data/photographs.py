"""Labelled images."""

from bad_data.case import Bad, bomb, picture

TASK = "image-classification"
GOOD = {f"{label}/{i}.png": picture(shade=20 * i) for label in ("can", "jar") for i in range(1, 6)}
MANIFEST = "image,label\n" + "".join(f"{name},{name[:3]}\n" for name in GOOD)

CASES = (
    Bad("photographs-no-zip", TASK, {"a.zip": b"not a zip"}, {"a.zip": "the file is not a zip"}),
    Bad("photographs-no-image", TASK, {"can/a.txt": "a", "jar/b.txt": "b"}, {"data.zip": "there is no image in it"}),
    Bad(
        "photographs-one-class",
        TASK,
        {name: data for name, data in GOOD.items() if "can" in name},
        {"label": "train has 1 class (`can`)"},
    ),
    Bad(
        "photographs-damaged",
        TASK,
        GOOD
        | {
            "can/cut.png": picture()[:55],
            "can/half.jpg": picture("JPEG")[:-40],
            "jar/text.jpg": b"Dear Sir",
            "jar/0.png": b"",
        },
        {
            "data.zip/can/cut.png": "the PNG is damaged or cut short",
            "data.zip/can/half.jpg": "the bytes are none of JPEG, PNG, WEBP, BMP, or damaged at the start",
            "data.zip/jar/0.png": "there is no image",
            "data.zip/jar/text.jpg": "the bytes are none of JPEG, PNG, WEBP, BMP, or damaged at the start",
        },
    ),
    Bad(
        "photographs-bomb",
        TASK,
        GOOD | {"can/bomb.png": bomb()},
        {"data.zip/can/bomb.png": "the image has 60000x60000 pixels"},
    ),
    Bad(
        "photographs-another-format",
        TASK,
        GOOD | {"can/tiff.jpg": picture("TIFF"), "jar/gif.png": picture("GIF")},
        {
            "data.zip/can/tiff.jpg": "the bytes are none of JPEG, PNG, WEBP, BMP, or damaged at the start",
            "data.zip/jar/gif.png": "the bytes are none of JPEG, PNG, WEBP, BMP, or damaged at the start",
        },
    ),
    Bad(
        "photographs-loose",
        TASK,
        GOOD | {"loose.png": picture()},
        {"data.zip/loose.png": "the image lies in no class's folder"},
    ),
    Bad(
        "photographs-manifest-of-others",
        TASK,
        GOOD | {"labels.csv": MANIFEST + "can/99.png,can\n../../etc/passwd,can\n"},
        {
            "data.zip/labels.csv:row 11:image": "there is no file `can/99.png` in the zip",
            "data.zip/labels.csv:row 12:image": "there is no file `etc/passwd` in the zip",
        },
    ),
    Bad(
        "photographs-manifest-without-labels",
        TASK,
        GOOD | {"labels.csv": MANIFEST + "can/1.png,\n"},
        {"data.zip/labels.csv:row 11:label": "there is no value"},
    ),
    Bad(
        "photographs-manifest-of-some-parts",
        TASK,
        GOOD | {"labels.csv": "image,label,split\ncan/1.png,can,train\njar/1.png,jar,\njar/2.png,jar,final\n"},
        {
            "data.zip/labels.csv:row 3:split": "`final` is none of train, training",
            "data.zip:split": "some rows say which part they belong to, and others do not",
        },
    ),
    Bad(
        "photographs-classes-of-test-alone",
        TASK,
        {f"train/{name}": data for name, data in GOOD.items()} | {"test/bag/1.png": picture(shade=7)},
        {"label": "test has classes that train lacks: `bag`"},
    ),
    Bad(
        "photographs-no-base64",
        TASK,
        {"a.jsonl": '{"image": "no base64!", "label": "can"}\n'},
        {"a.jsonl:row 1:image": "`no base64!` is not base64"},
    ),
    Bad(
        "photographs-a-table-of-texts",
        TASK,
        {"a.csv": "image,label\naGVsbG8=,can\n"},
        {"a.csv:row 1:image": "the bytes are none of JPEG, PNG, WEBP, BMP, or damaged at the start"},
    ),
)
