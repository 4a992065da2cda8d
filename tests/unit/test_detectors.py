"""The detectors themselves: what torchvision finds they find, what they learn, what is frozen, what is exported."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boxed_images import PNG
from luthier import datasets
from luthier.errors import InvalidArgument
from luthier.task import DataFile
from luthier.tasks.object_detection.v1 import object_detection_pb2 as pb
from luthier.toolkit.backbones import Base
from luthier.v1.dataset_pb2 import Split
from luthier_object_detection import ObjectDetection
from luthier_object_detection.codec import ObjectDetectionCodec


def bare(architecture: str, weights: str = "") -> Base:
    """A detector of torchvision as a base."""
    half = (0.5, 0.5, 0.5)
    return Base(id="ours", library="torchvision", architecture=architecture, weights=weights, mean=half, std=half)


@pytest.mark.parametrize(
    "architecture", ["ssdlite320_mobilenet_v3_large", "retinanet_resnet50_fpn", "fcos_resnet50_fpn"]
)
def test_boxes_and_scores_are_torchvisions(architecture: str, tmp_path: Path) -> None:
    import torch
    from torchvision.models.detection.image_list import ImageList

    from luthier_object_detection.creation import create

    base = bare(architecture)
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

    from luthier_object_detection.creation import create

    base = bare("fasterrcnn_mobilenet_v3_large_320_fpn")
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
        # Not more: PyTorch and ONNX Runtime would each be off what 64 bits give by more than an export may differ.
        detector.core.roi_heads.box_predictor.cls_score.weight.mul_(5)
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

    from luthier_object_detection.creation import create

    state = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=5).state_dict()
    save_file(state, tmp_path / "w.safetensors")
    base = bare("ssdlite320_mobilenet_v3_large", "w.safetensors")
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
