"""The plugin for image classification, on a tiny random backbone and images that are drawn here."""

from __future__ import annotations

import base64
import csv
import io
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as v2

import tiny_timm
from luthier import datasets, fields, images
from luthier.errors import Cancelled, InvalidArgument, InvalidData
from luthier.inference.predictor import Predictor
from luthier.task import DataFile, Run, Split
from luthier.tasks.image_classification.v1 import image_classification_pb2 as pb
from luthier.toolkit import progress
from luthier.toolkit.vision import shuffled_batches
from luthier_image_classification import ImageClassification, augmentation, training
from luthier_image_classification.resolution import fitting_side

TASK = ImageClassification()
SETTINGS = {"epochs": 2, "batch_size": 16, "image_size": 32, "learning_rate": 0.003, "head_learning_rate": 0.01}
COLOURS = {"red": 0, "green": 1, "blue": 2}


def image(label: str, seed: int, side: int = 40) -> np.ndarray:
    """Noise in which the label's channel is brighter."""
    noise = np.random.default_rng(seed).integers(0, 150, (side, side, 3), dtype=np.uint8)
    noise[..., COLOURS[label]] += 100
    return noise


def png(label: str = "red", seed: int = 0) -> bytes:
    return images.encode_png(image(label, seed))


def jpeg(seed: int = 0) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image("red", seed)).save(stream, "JPEG")
    return stream.getvalue()


def examples(count: int, seed: int) -> pa.Table:
    labels = [list(COLOURS)[i % 3] for i in range(count)]
    encoded = [png(label, seed * 1000 + i) for i, label in enumerate(labels)]
    return pa.table({"image": pa.array(encoded, pa.large_binary()), "label": labels, "name": [""] * count})


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
    assert built.statistics["width_pixels"] == dict.fromkeys(["min", "p10", "p50", "p90", "max"], 40)
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


# Training.


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_timm.write(tmp_path_factory.mktemp("base"), side=128)


@pytest.fixture
def make_run(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    """Makes a run whose every step is reported."""
    monkeypatch.setattr(progress, "INTERVAL_S", 0.0)

    def make(*, validation: pa.Table = VALIDATION, seed: int = 0, **settings: Any) -> Run:
        config = pb.Config(**(SETTINGS | settings))
        fields.resolve(config)
        parts = {"train": TRAIN, "validation": validation}
        return Run(parts=parts, config=config, base=base, seed=seed, directory=tmp_path, emit=[].append)

    return make


def curve(run: Run, name: str) -> list[float]:
    events: list[dict[str, Any]] = run.emit.__self__  # type: ignore[attr-defined]
    values = (event["metrics"]["values"] for event in events if "metrics" in event)
    return [value[name] for value in values if name in value]


def test_the_classes_are_learned(make_run: Callable[..., Run]) -> None:
    run = make_run(epochs=8)
    model = training.fine_tune(run)
    losses = curve(run, "loss")
    assert len(losses) == run.figures["steps"] == 32
    assert losses[0] > 0.9
    assert np.mean(losses[-4:]) < 0.6
    assert run.figures["image_size"] == 32
    scores = TASK.score(TEST, training.predict(model, TASK.instances(TEST)))
    assert scores.metrics["accuracy"] == 1.0


def test_the_seed_fixes_the_weights_bit_by_bit(make_run: Callable[..., Run]) -> None:
    first, again, other = (training.fine_tune(make_run(seed=seed)).classifier.state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_without_validation_every_epoch_is_trained(make_run: Callable[..., Run]) -> None:
    run = make_run(validation=VALIDATION.slice(0, 0), epochs=2, patience=1)
    training.fine_tune(run)
    assert run.figures["epochs_run"] == run.figures["best_epoch"] == 2
    assert curve(run, "validation/accuracy") == []


def test_a_random_start_is_random(make_run: Callable[..., Run]) -> None:
    tuned, scratch = (training.fine_tune(make_run(epochs=1, from_scratch=flag, learning_rate=0)) for flag in (0, 1))
    weights = [model.classifier.backbone.conv_stem.weight for model in (tuned, scratch)]
    assert (weights[0] - weights[1]).abs().mean() > 0.01


@pytest.mark.parametrize(("architecture", "rate"), [("test_vit", 1e-4), ("test_convnext", 1e-4)])
def test_other_families_are_backbones_too(architecture: str, rate: float, make_run: Callable[..., Run]) -> None:
    """A transformer reads images of another size than it was made for, and all are exported as they compute."""
    run = make_run(epochs=1, image_size=96)
    run.base = tiny_timm.write(run.directory, architecture=architecture)
    model = training.fine_tune(run)
    assert training.fitting_rate(model.classifier.backbone) == rate
    bundle = run.directory / "bundle"
    bundle.mkdir()
    training.export(model, bundle)
    [prediction] = Predictor(TASK, bundle).predict([pb.Instance(image=png())])
    assert prediction.label in COLOURS


def test_an_earlier_version_is_no_base(make_run: Callable[..., Run]) -> None:
    run = make_run()
    run.warm_start = True
    with pytest.raises(InvalidArgument, match="vision model of the catalogue") as refused:
        training.fine_tune(run)
    assert list(refused.value.violations) == ["base"]


@pytest.mark.parametrize(("count", "epochs"), [(1, 25), (120, 25), (288, 10), (600, 5), (1000, 4), (10**6, 4)])
def test_epochs_follow_from_the_number_of_images(count: int, epochs: int) -> None:
    assert training.fitting_epochs(count) == epochs


def test_left_open_size_and_epochs_are_fitted(make_run: Callable[..., Run]) -> None:
    run = make_run(image_size=0, epochs=0)
    run.cancelled = lambda: bool(curve(run, "validation/accuracy"))
    with pytest.raises(Cancelled):
        training.fine_tune(run)
    events: list[dict[str, Any]] = run.emit.__self__  # type: ignore[attr-defined]
    assert {event["progress"]["total"] for event in events if event.get("progress", {}).get("stage") == "training"} == {
        25 * 4
    }


def test_batches_are_as_equal_as_can_be() -> None:
    batches = list(shuffled_batches(65, 32, np.random.default_rng(0)))
    assert [len(batch) for batch in batches] == [22, 22, 21]
    assert sorted(np.concatenate(batches)) == list(range(65))


# The input's size.


def detailed(seed: int) -> np.ndarray:
    """256 pixels square, with about as much detail on each scale as photographs have."""
    random = np.random.default_rng(seed)
    octaves = [2**n for n in range(1, 9)]
    noise = [Image.fromarray(random.normal(0, side**-0.25, (side, side)).astype(np.float32)) for side in octaves]
    picture = sum(np.asarray(one.resize((256, 256), Image.Resampling.BICUBIC)) for one in noise)
    grey = np.clip(127 + 30 * picture / np.std(picture), 0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, 2)


@pytest.mark.parametrize(
    ("sides", "fitting"), [([], 224), ([600], 224), ([128], 128), ([128, 400], 128), ([32], 96), ([64, 300], 96)]
)
def test_the_input_is_as_large_as_the_images_have_detail(sides: list[int], fitting: int) -> None:
    """The images are resized to each of the sides in turn."""
    pictures = [detailed(seed) for seed in range(5)]
    for side in sides:
        pictures = [images.resize(picture, side, side) for picture in pictures]
    encoded = pa.array([images.encode_png(picture) for picture in pictures], pa.large_binary())
    assert fitting_side(pa.chunked_array([encoded]), 224) == fitting


def test_sharp_images_need_no_more_than_their_pixels() -> None:
    random = np.random.default_rng(0)
    noise = [images.encode_png(random.integers(0, 256, (110, 140, 3), dtype=np.uint8)) for _ in range(3)]
    assert fitting_side(pa.chunked_array([pa.array(noise, pa.large_binary())]), 224) == 128


def test_images_of_one_colour_need_no_detail() -> None:
    flat = images.encode_png(np.full((300, 300), 7, dtype=np.uint8))
    assert fitting_side(pa.chunked_array([pa.array([flat], pa.large_binary())]), 224) == 96


# Augmentation.


def test_colours_change_as_torchvision_changes_them() -> None:
    batch = torch.from_numpy(np.stack([image("red", seed) // 2 + 40 for seed in range(4)])).permute(0, 3, 1, 2)
    factors = torch.tensor([[1.0, 0.8, 1.1, 0.9], [1.0, 1.2, 0.8, 1.0], [1.0, 0.9, 1.15, 0.8]])
    changed = augmentation._jitter(batch, *factors)
    assert torch.equal(changed[0], batch[0])
    for i, (brightness, contrast, saturation) in enumerate(factors.T.tolist()):
        one = v2.adjust_brightness(v2.adjust_saturation(batch[i], saturation), brightness)
        expected = v2.adjust_contrast(one, contrast)
        assert (changed[i].int() - expected.int()).abs().max() <= 3
        assert (
            changed[i].int() - expected.int()
        ).abs().float().mean() < 1.5  # They cut off what is behind the point each time.


def test_each_image_is_changed_by_itself() -> None:
    batch = torch.from_numpy(np.stack([image("red", 0)] * 8))
    augment = augmentation.Augmentation((32, 32), 0.35, flip=True, colour_jitter=0.2)
    torch.manual_seed(0)
    first = augment(batch)
    torch.manual_seed(0)
    assert torch.equal(first, augment(batch))
    assert first.shape == (8, 32, 32, 3)
    assert first.dtype == torch.uint8
    assert len({one.numpy().tobytes() for one in first}) == 8


def test_without_changes_whole_images_are_resized() -> None:
    batch = torch.from_numpy(np.stack([image("red", seed, 32) for seed in range(3)]))
    augment = augmentation.Augmentation((32, 32), 1.0, flip=False, colour_jitter=0.0)
    torch.manual_seed(0)
    differences = (augment(batch).int() - batch.int()).abs().float()
    assert differences.mean() < 40


# Serving.


def test_served_predictions_are_those_of_the_model(make_run: Callable[..., Run], tmp_path: Path) -> None:
    model = training.fine_tune(make_run(epochs=3))
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    training.export(model, bundle)
    predictor = Predictor(TASK, bundle)
    instances = TASK.instances(TEST.slice(0, 5)) * 8
    for ours, theirs in zip(training.predict(model, instances), predictor.predict(instances), strict=True):
        assert ours.label == theirs.label
        assert len(theirs.top) == 3
        assert ours.score == pytest.approx(theirs.score, abs=1e-5)


def test_scores() -> None:
    labels = [f"c{i}" for i in range(7)]
    truth = pa.table({"label": ["c0", "c1", "c2", "c6"]})

    def prediction(first: str, count: int) -> pb.Prediction:
        order = [first, *(label for label in labels if label != first)][:count]
        top = [pb.ClassScore(label=label, score=0.5 / (i + 1)) for i, label in enumerate(order)]
        return pb.Prediction(label=first, score=0.5, top=top)

    many = TASK.score(truth, [prediction(first, 7) for first in ("c0", "c2", "c2", "c0")])
    assert many.metrics["accuracy"] == 0.5
    assert many.metrics["top5_accuracy"] == 0.75
    assert many.confusion_matrix.labels == ["c0", "c1", "c2", "c6"]
    assert list(many.confusion_matrix.counts) == [1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0]
    assert "top5_accuracy" not in TASK.score(truth, [prediction("c0", 5)] * 4).metrics
    assert "top5_accuracy" in TASK.score(truth.slice(0, 1), [prediction("c0", 6)]).metrics


def test_a_prediction_is_drawn() -> None:
    top = [pb.ClassScore(label="a class with a name that is far too long to fit in one line " * 2, score=0.75)]
    top.append(pb.ClassScore(label="ordinary", score=0.25))
    picture = TASK.render(pb.Instance(image=png()), pb.Prediction(label=top[0].label, score=0.75, top=top))
    assert picture.media_type == "image/png"
    drawn = images.decode(picture.content)
    assert drawn.shape == (480 + 36 + 56, 504, 3)
    bars = np.all(drawn[480 + 26 :: 28] == (0x9E, 0xC5, 0xE8), axis=-1).sum(1)
    assert bars[0] > 2.5 * bars[1] > 250
