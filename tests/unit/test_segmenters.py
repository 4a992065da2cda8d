"""The segmenters themselves: label maps, views, networks and what they keep of their bases."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pycocotools import mask as coco_mask
from safetensors.torch import save_file
from torch.nn import functional
from torchvision.models import segmentation

from luthier import images
from luthier.errors import InvalidArgument
from luthier.tasks.semantic_segmentation.v1 import semantic_segmentation_pb2 as pb
from luthier.toolkit.backbones import Base, read_base
from luthier_semantic_segmentation import label_maps, networks, training
from luthier_semantic_segmentation.augment import IGNORED, views

OLD_NUMPY = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
"""What pycocotools 2.0 decodes masks with was written for NumPy 1."""


# Label maps.


@pytest.mark.parametrize(
    ("grid", "size"),
    [((16, 16), (75, 100)), ((16, 24), (9, 7)), ((5, 7), (1, 1)), ((1, 1), (4, 6)), ((3, 1), (600, 700))],
)
def test_logits_are_enlarged_as_pytorch_does(grid: tuple[int, int], size: tuple[int, int]) -> None:
    logits = np.random.default_rng(0).normal(size=(6, *grid)).astype(np.float32)
    logits[2] -= 10  # Can win nowhere, and is left out.
    enlarged = functional.interpolate(torch.from_numpy(logits)[None], size, mode="bilinear", align_corners=False)
    expected = enlarged[0].argmax(0).numpy()
    assert (label_maps.classes_at(logits, *size) == expected).all()
    assert (training._largest(torch.from_numpy(logits), size).numpy() == expected).all()


def test_of_equal_logits_the_first_wins() -> None:
    assert (label_maps.classes_at(np.zeros((3, 4, 4), dtype=np.float32), 9, 9) == 0).all()


@pytest.mark.parametrize("format", [pb.MASK_FORMAT_UNSPECIFIED, pb.MASK_FORMAT_RLE, pb.MASK_FORMAT_PNG])
def test_label_maps_survive_messages(format: int) -> None:
    label_map = np.random.default_rng(1).integers(0, 4, (7, 5), dtype=np.uint8)
    label_map[label_map == 2] = 0
    prediction = label_maps.to_prediction(label_map, ["a", "b", "c", "d"], format)
    assert (label_maps.of_prediction(prediction) == label_map).all()
    assert (prediction.height, prediction.width) == (7, 5)
    assert [area.label for area in prediction.classes] == ["a", "b", "c", "d"]
    assert [area.pixels for area in prediction.classes] == [int((label_map == i).sum()) for i in range(4)]
    assert sum(area.share for area in prediction.classes) == pytest.approx(1)
    assert bool(prediction.png) == (format == pb.MASK_FORMAT_PNG)


@OLD_NUMPY
def test_run_lengths_are_those_of_coco() -> None:
    label_map = np.random.default_rng(2).integers(0, 3, (6, 9), dtype=np.uint8)
    label_map[0, 0], label_map[-1, -1] = 1, 2
    prediction = label_maps.to_prediction(label_map, ["a", "b", "c"], pb.MASK_FORMAT_RLE)
    for index, mask in enumerate(prediction.masks):
        encoded = coco_mask.frPyObjects({"size": [6, 9], "counts": list(mask.counts)}, 6, 9)
        assert (coco_mask.decode(encoded) == (label_map == index)).all()


# Training.


def test_views_keep_masks_on_images_and_ignore_what_lies_outside() -> None:
    random = np.random.default_rng(0)
    classes = torch.zeros(16, 48, 64, dtype=torch.uint8)
    classes[..., 32:] = 1
    pixels = (classes * 200)[..., None].repeat(1, 1, 1, 3)
    classes[:, :4] = 255
    fill = torch.tensor([77.0, 77.0, 77.0])
    seen, targets = views(pixels, classes, (32, 64), fill, 2.0, random)
    assert seen.shape == (16, 32, 64, 3)
    assert set(targets.unique().tolist()) == {IGNORED, 0, 1}
    level = seen.mean(-1)
    assert level[targets == 1].mean() > 150
    assert level[targets == 0].mean() < 50
    outside = (seen - fill).abs().max(-1).values < 1e-3
    assert outside.any()
    assert (targets[outside] == IGNORED).float().mean() > 0.95


@pytest.mark.parametrize(
    ("sizes", "side", "expected"),
    [
        ([(375, 500)] * 4, 0, (224, 288)),
        ([(375, 500), (500, 375)] * 2, 0, (256, 256)),
        ([(100, 100)] * 3, 0, (96, 96)),
        ([(20, 20)] * 3, 0, (64, 64)),
        ([(500, 500)] * 3, 320, (320, 320)),
        ([(100, 1000)] * 3, 128, (96, 192)),
    ],
)
def test_the_input_fits_the_images(sizes: list[tuple[int, int]], side: int, expected: tuple[int, int]) -> None:
    masks = pa.table({"mask": [images.encode_png(np.zeros(size, dtype=np.uint8)) for size in sizes]})
    assert training.fitted_size(masks, side) == expected


def test_rare_classes_weigh_more_as_they_are_balanced() -> None:
    classes = np.array([0] * 90 + [1] * 10 + [255] * 50, dtype=np.uint8)
    assert training.class_weights(classes, 2, 0.0).tolist() == [1, 1]
    assert training.class_weights(classes, 2, 1.0).tolist() == pytest.approx([0.5 / 0.9, 0.5 / 0.1])
    assert training.class_weights(classes, 2, 0.5).tolist() == pytest.approx(
        [0.75 / 0.9**0.5 / 0.948683 * 0.948683, 2.37], 1
    )


def write_base(directory: Path, state: Mapping[str, torch.Tensor], **base: Any) -> Base:
    save_file(dict(state), directory / "model.safetensors")
    content = {"id": "b", "weights": "model.safetensors", "input_size": [64, 64], "mean": [0.5] * 3, "std": [0.5] * 3}
    (directory / "base.json").write_text(json.dumps(content | base), encoding="utf-8")
    return read_base(directory)


@pytest.mark.parametrize("architecture", ["lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large"])
def test_segmenters_of_torchvision_keep_all_but_their_last_layer(architecture: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    aux = {} if architecture.startswith("lraspp") else {"aux_loss": True}
    model = getattr(segmentation, architecture)(weights=None, weights_backbone=None, num_classes=21, **aux).eval()
    base = write_base(tmp_path, model.state_dict(), library="torchvision", architecture=architecture, num_classes=21)
    segmenter, fresh = networks.build(base, tmp_path, 21, (64, 64), 0, pretrained=True)
    assert sum(p.numel() for p in fresh.parameters()) < 21 * 300
    ours, theirs = segmenter.eval().state_dict(), model.state_dict()
    kept = [name for name in theirs if name.startswith("backbone.")]
    assert kept
    assert all(torch.equal(ours[name], theirs[name]) for name in kept)
    segmenter.train()(torch.zeros(2, 64, 64, 3, dtype=torch.uint8))
    statistics = next(name for name in kept if name.endswith("running_mean"))
    assert torch.equal(segmenter.state_dict()[statistics], theirs[statistics])
    segmenter.eval()
    if architecture.startswith("lraspp"):
        fresh[0].load_state_dict(model.classifier.low_classifier.state_dict())
        fresh[1].load_state_dict(model.classifier.high_classifier.state_dict())
    else:
        fresh[0].load_state_dict(model.classifier[-1].state_dict())
    pixels = torch.randint(256, (2, 64, 64, 3), dtype=torch.uint8)
    with torch.inference_mode():
        logits = functional.interpolate(segmenter(pixels), (64, 64), mode="bilinear", align_corners=False)
        expected = model(segmenter.normalise(pixels))["out"]
    assert torch.allclose(logits, expected, atol=1e-5)


def test_a_base_of_torchvision_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    model = segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=21)
    state = {name: tensor for name, tensor in model.state_dict().items() if "cbr" not in name}
    base = write_base(tmp_path, state, library="torchvision", architecture="lraspp_mobilenet_v3_large", num_classes=21)
    with pytest.raises(InvalidArgument, match="do not fit"):
        networks.build(base, tmp_path, 3, (64, 64), 0, pretrained=True)
    base = write_base(tmp_path, state, library="torchvision", architecture="resnet18", num_classes=21)
    with pytest.raises(InvalidArgument, match="none of torchvision's"):
        networks.build(base, tmp_path, 3, (64, 64), 0, pretrained=True)


@pytest.mark.parametrize(
    ("architecture", "grid"),
    [
        ("test_efficientnet", (16, 16)),
        ("test_resnet", (16, 16)),
        ("test_convnext", (16, 16)),
        ("test_vit", (4, 4)),
        ("efficientvit_b0", (16, 16)),
    ],
    ids=["two strides", "residual", "stem of stride 4", "no pyramid", "no other stride"],
)
def test_any_backbone_of_timm_carries_the_head(architecture: str, grid: tuple[int, int], tmp_path: Path) -> None:
    base = write_base(tmp_path, {}, library="timm", architecture=architecture, num_classes=10)
    segmenter, _ = networks.build(base, tmp_path, 3, (64, 64), 16, pretrained=False)
    pixels = torch.zeros(2, 64, 64, 3, dtype=torch.uint8)
    assert segmenter(pixels).shape == (2, 3, *grid)
