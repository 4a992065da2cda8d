"""Classifiers of images: training, input, augmentation, serving, scores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as v2

import tiny_timm
from coloured_images import COLOURS, examples, image, png
from luthier import fields, images
from luthier.errors import Cancelled, InvalidArgument
from luthier.inference.predictor import Predictor
from luthier.task import Run
from luthier.tasks.image_classification.v1 import image_classification_pb2 as pb
from luthier.toolkit import progress
from luthier.toolkit.vision import shuffled_batches
from luthier_image_classification import ImageClassification, augmentation, training
from luthier_image_classification.resolution import fitting_side

TASK = ImageClassification()
SETTINGS = {"epochs": 2, "batch_size": 16, "image_size": 32, "learning_rate": 0.003, "head_learning_rate": 0.01}


TRAIN, VALIDATION, TEST = examples(60, 1), examples(12, 2), examples(12, 3)


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
