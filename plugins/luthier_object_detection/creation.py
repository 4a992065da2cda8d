"""The detector that a base gives: one of torchvision with a new classifier, or FCOS on a backbone of timm."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.models import get_model
from torchvision.models.detection import FCOS, FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.ssd import SSD

from luthier.errors import InvalidArgument
from luthier.toolkit.backbones import Base, create_backbone, load_weights
from luthier_object_detection.detectors import EXTRA_LEVELS, Detector, Pyramid
from luthier_object_detection.two_stages import TwoStages

STRIDES = (8, 16, 32)
"""Of the feature maps taken from a timm backbone."""
FROZEN_STRIDE = 4
"""Layers up to the feature map of this stride may keep the base's weights: they see edges and colours alone, and are
half the work of a training step."""
CHANNELS = 96
"""Of the feature pyramid on a timm backbone."""
HEAD_CONVOLUTIONS = 2
TORCHVISION = (
    "ssdlite320_mobilenet_v3_large",
    "ssd300_vgg16",
    "retinanet_resnet50_fpn",
    "retinanet_resnet50_fpn_v2",
    "fcos_resnet50_fpn",
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
)
COCO_CLASSES = 91
"""Of torchvision's published weights, which number the classes as COCO does, with gaps."""
PRIOR = 0.01
"""Probability that an untrained classifier gives a class at a place, after Lin et al."""


def create(
    base: Base, directory: Path, num_classes: int, size: tuple[int, int], *, pretrained: bool, freeze: bool
) -> Detector:
    """The detector that a base gives: itself with a new classifier, or FCOS on a backbone.

    With `freeze`, pretrained layers up to stride 4 keep their weights. Raises InvalidArgument where there is none.
    """
    freeze = freeze and pretrained
    if base.library == "torchvision":
        core = _torchvision(base, directory, num_classes, pretrained)
        frozen = _early_of_resnet(core) if freeze else []
        # torchvision trains its detectors with the statistics of the base.
        frozen += [layer for layer in core.modules() if isinstance(layer, nn.BatchNorm2d)] if pretrained else []
        kind = TwoStages if isinstance(core, FasterRCNN) else Detector
        return kind(core, size, base.mean, base.std, frozen)
    body = create_backbone(base, directory, pretrained=pretrained, features_only=True)
    try:
        frozen = _early(body) if freeze else []
        return Detector(_on_timm(base, body, num_classes), size, base.mean, base.std, frozen)
    except AssertionError as error:
        # So say timm's transformers whose positions are learnt.
        raise InvalidArgument({"base": f"{base.architecture} takes images of one size alone: {error}"}) from error


def _on_timm(base: Base, body: Any, num_classes: int) -> FCOS:
    """FCOS on the feature maps of a timm backbone."""
    info = body.feature_info
    # Of stages with the same stride the last one has seen most.
    levels = {stride: level for level, stride in enumerate(info.reduction()) if stride in STRIDES}
    if not levels:
        wanted = ", ".join(map(str, STRIDES))
        raise InvalidArgument({"base": f"{base.architecture} has no feature map of stride {wanted}"})
    backbone = Pyramid(body, list(levels.values()), [info.channels()[level] for level in levels.values()], CHANNELS)
    strides = [*levels, *(max(levels) * 2**i for i in range(1, EXTRA_LEVELS + 1))]
    anchors = AnchorGenerator(tuple((stride,) for stride in strides), ((1.0,),) * len(strides))
    head = FCOSHead(CHANNELS, 1, num_classes, HEAD_CONVOLUTIONS)
    return FCOS(backbone, num_classes, anchor_generator=anchors, head=head)


def _early(body: Any) -> list[nn.Module]:
    """The layers of a timm backbone that its feature map of stride 4 comes from; none where it has no such map."""
    strides = body.feature_info.reduction()
    if FROZEN_STRIDE not in strides:
        return []
    feature_map = body.eval()(torch.zeros(1, 3, 64, 64))[strides.index(FROZEN_STRIDE)]
    names, parameters = zip(*body.named_parameters(), strict=True)
    gradients = torch.autograd.grad(feature_map.sum(), parameters, allow_unused=True)
    owners = {name.rpartition(".")[0] for name, gradient in zip(names, gradients, strict=True) if gradient is not None}
    return [body.get_submodule(owner) for owner in sorted(owners)]


def _early_of_resnet(core: Any) -> list[nn.Module]:
    """The same of torchvision's ResNets with a feature pyramid; other backbones of its detectors train whole."""
    body: Any = getattr(core.backbone, "body", {})
    return [body.conv1, body.bn1, body.layer1] if "layer1" in body else []


def _torchvision(base: Base, directory: Path, num_classes: int, pretrained: bool) -> nn.Module:
    if base.architecture not in TORCHVISION:
        raise InvalidArgument(
            {"base": f"{base.architecture} is none of torchvision's detectors known here: {', '.join(TORCHVISION)}"}
        )
    core: Any = get_model(base.architecture, weights=None, weights_backbone=None, num_classes=COCO_CLASSES)
    layers = _replace_classifier(core, num_classes)
    if pretrained:
        state = load_weights(base, directory)
        expected = core.state_dict()
        needed = [n for n in expected if not n.startswith(layers) and not n.endswith("num_batches_tracked")]
        if wrong := [name for name in needed if name not in state or state[name].shape != expected[name].shape]:
            raise InvalidArgument(
                {
                    "base": f"the weights of {base.id} lack {len(wrong)} of the {len(needed)} tensors of "
                    f"{base.architecture}, or have them in another shape: {', '.join(wrong[:5])}"
                }
            )
        core.load_state_dict({name: state[name] for name in needed}, strict=False)
    found: nn.Module = core
    return found


def _replace_classifier(core: Any, num_classes: int) -> tuple[str, ...]:
    """Gives a detector new last layers for its own classes; returns the prefixes of their names."""
    if isinstance(core, FasterRCNN):
        heads: Any = core.roi_heads
        heads.box_predictor = FastRCNNPredictor(heads.box_predictor.cls_score.in_features, num_classes + 1)
        return ("roi_heads.box_predictor.",)
    head = core.head.classification_head
    if isinstance(core, SSD):
        outputs = num_classes + 1
        prefixes = []
        for level, anchors in enumerate(core.anchor_generator.num_anchors_per_location()):
            block = head.module_list[level]
            if isinstance(block, nn.Sequential):
                block[-1] = _resized(block[-1], anchors * outputs)
                prefixes.append(f"head.classification_head.module_list.{level}.{len(block) - 1}.")
            else:
                head.module_list[level] = _resized(block, anchors * outputs)
                prefixes.append(f"head.classification_head.module_list.{level}.")
        head.num_columns = outputs
        return tuple(prefixes)
    head.cls_logits = _resized(head.cls_logits, head.num_anchors * num_classes)
    nn.init.constant_(head.cls_logits.bias, -math.log((1 - PRIOR) / PRIOR))
    head.num_classes = num_classes
    return ("head.classification_head.cls_logits.",)


def _resized(layer: Any, out_channels: int) -> nn.Conv2d:
    """A convolution like another one, with other outputs and random weights."""
    fresh = nn.Conv2d(layer.in_channels, out_channels, layer.kernel_size, layer.stride, layer.padding)
    nn.init.normal_(fresh.weight, std=0.01)
    assert fresh.bias is not None, "a convolution has a bias unless told otherwise"
    nn.init.zeros_(fresh.bias)
    return fresh
