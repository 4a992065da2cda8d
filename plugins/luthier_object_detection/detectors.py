"""Detectors that look at all places of an image at once: torchvision's FCOS, RetinaNet and SSD, and FCOS on timm.

FCOS (Tian et al., 2019) predicts from each place of a feature map how far away the four edges of the object around it
are; RetinaNet (Lin et al., 2017) and SSD (Liu et al., 2016) predict how boxes of set shapes have to be moved. The
losses are torchvision's own. The input has one size, so the places and the set shapes are constants of the graph.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.models import get_model
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD
from torchvision.ops import FeaturePyramidNetwork, box_iou

from luthier.errors import InvalidArgument
from luthier.toolkit.backbones import Base, create_backbone, load_weights
from luthier.toolkit.vision import Normalise

STRIDES = (8, 16, 32)
"""Of the feature maps taken from a timm backbone."""
EXTRA_LEVELS = 1
"""Coarser maps made from the last of them."""
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
)
"""torchvision's detectors in one stage. Those in two stages choose within the graph which boxes to look at closer."""
COCO_CLASSES = 91
"""Of torchvision's published weights, which number the classes as COCO does, with gaps."""
PRIOR = 0.01
"""Probability that an untrained classifier gives a class at a place, after Lin et al."""
MOST_LOG_SCALE = math.log(1000 / 16)
"""The largest step of a box's side, as a logarithm; torchvision's."""

Target = dict[str, torch.Tensor]
"""`boxes`, float32 [objects, 4] in pixels of the input, and `labels`, int64 [objects], from 0."""


class Detector(nn.Module):
    """uint8 [batch, height, width, 3] to scores [batch, places, classes] and boxes [batch, places, 4].

    Boxes are left, top, right, bottom as shares of the input's sides, within 0 and 1.
    """

    anchors: torch.Tensor
    scale: torch.Tensor

    def __init__(
        self,
        core: FCOS | RetinaNet | SSD,
        size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        frozen: Collection[nn.Module] = (),
    ) -> None:
        """`size` is (height, width); layers that are `frozen` keep their weights and their statistics."""
        super().__init__()
        self.size = size
        self.normalise = Normalise(mean, std)
        # Its `transform` and its way of choosing boxes are left aside: they do not export, and the codec has its own.
        self.core: Any = core
        self._frozen = tuple(frozen)
        for layer in self._frozen:
            layer.requires_grad_(False)
        height, width = size
        self.register_buffer("scale", torch.tensor([width, height, width, height]).float(), persistent=False)
        anchors, self.places = self._lay_out()
        self.register_buffer("anchors", anchors, persistent=False)

    def train(self, mode: bool = True) -> Detector:
        """Sets the mode, of the frozen layers always that of evaluation."""
        super().train(mode)
        for layer in self._frozen:
            layer.eval()
        return self

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores and boxes."""
        return self.decode(self.outputs(pixels))

    def outputs(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the head says of each place, as torchvision names it, each [batch, places, …]."""
        features = self.core.backbone(self.normalise(pixels))
        outputs: dict[str, torch.Tensor] = self.core.head(list(features.values()))
        return outputs

    def decode(self, outputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores and boxes from the head's outputs."""
        logits, moves = outputs["cls_logits"], outputs["bbox_regression"]
        if isinstance(self.core, SSD):
            scores, boxes = logits.softmax(-1)[..., 1:], self._moved(moves)
        elif isinstance(self.core, RetinaNet):
            scores, boxes = logits.sigmoid(), self._moved(moves)
        else:
            scores = (logits.sigmoid() * outputs["bbox_ctrness"].sigmoid()).sqrt()
            boxes = self._around(moves)
        return scores, (boxes / self.scale).clamp(0, 1)

    def loss(self, outputs: dict[str, torch.Tensor], targets: list[Target]) -> torch.Tensor:
        """torchvision's loss of the detector from the head's outputs, the mean over the batch."""
        outputs = {name: output.float() for name, output in outputs.items()}
        anchors = [self.anchors] * len(targets)
        if isinstance(self.core, SSD):
            # Class 0 is the background.
            shifted = [{"boxes": target["boxes"], "labels": target["labels"] + 1} for target in targets]
            losses = self.core.compute_loss(shifted, outputs, anchors, [self._matched(t["boxes"]) for t in targets])
        elif isinstance(self.core, RetinaNet):
            losses = self.core.compute_loss(targets, outputs, anchors)
        else:
            losses = self.core.compute_loss(targets, outputs, anchors, self.places)
        total: torch.Tensor = sum(losses.values())
        return total

    def parts(self) -> tuple[nn.Module, nn.Module]:
        """What comes from the base, and what is new or stands on it."""
        backbone = self.core.backbone
        if isinstance(backbone, Pyramid):
            return backbone.body, nn.ModuleList([backbone.fpn, backbone.coarser, self.core.head])
        return backbone, self.core.head

    @torch.no_grad()
    def _lay_out(self) -> tuple[torch.Tensor, list[int]]:
        """All anchors, float32 [places, 4] in pixels, and how many each feature map has."""
        training = self.training
        self.eval()
        images = torch.zeros(1, 3, *self.size)
        features = list(self.core.backbone(images).values())
        (anchors,) = self.core.anchor_generator(ImageList(images, [self.size]), features)
        self.train(training)
        shapes = self.core.anchor_generator.num_anchors_per_location()
        counts = [f.shape[-2] * f.shape[-1] * count for f, count in zip(features, shapes, strict=True)]
        return anchors, counts

    def _matched(self, boxes: torch.Tensor) -> torch.Tensor:
        """The object of each anchor, int64 [places]; -1: none."""
        if not len(boxes):
            return torch.full((len(self.anchors),), -1, dtype=torch.int64, device=boxes.device)
        matched: torch.Tensor = self.core.proposal_matcher(box_iou(boxes, self.anchors))
        return matched

    def _around(self, distances: torch.Tensor) -> torch.Tensor:
        """Boxes from the distances of their edges to the anchors' centres, in units of the anchors' sides."""
        centres, sides = _centres_and_sides(self.anchors)
        return torch.cat([centres - distances[..., :2] * sides, centres + distances[..., 2:] * sides], -1)

    def _moved(self, moves: torch.Tensor) -> torch.Tensor:
        """Boxes from how anchors are moved and scaled, weighted as the detector's box coder says."""
        coder = self.core.box_coder if isinstance(self.core, SSD) else self.core.head.regression_head.box_coder
        centres, sides = _centres_and_sides(self.anchors)
        weighted = moves / torch.tensor(coder.weights, device=moves.device)
        moved = centres + weighted[..., :2] * sides
        halves = weighted[..., 2:].clamp(max=MOST_LOG_SCALE).exp() * sides / 2
        return torch.cat([moved - halves, moved + halves], -1)


class Pyramid(nn.Module):
    """A timm backbone with a feature pyramid (Lin et al., 2017): images to maps of equal depth, finest first."""

    def __init__(self, body: nn.Module, levels: Sequence[int], channels: Sequence[int], out_channels: int) -> None:
        """`levels` says which of the body's feature maps are taken, `channels` how deep they are."""
        super().__init__()
        self.body = body
        self._levels = tuple(levels)
        self.fpn = FeaturePyramidNetwork(list(channels), out_channels)
        self.coarser = nn.ModuleList(nn.Conv2d(out_channels, out_channels, 3, 2, 1) for _ in range(EXTRA_LEVELS))
        self.out_channels = out_channels

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Feature maps by number."""
        features = self.body(images)
        maps: dict[str, torch.Tensor] = self.fpn(OrderedDict((str(level), features[level]) for level in self._levels))
        last = maps[str(self._levels[-1])]
        for number, convolution in enumerate(self.coarser):
            maps[f"coarser{number}"] = last = convolution(last)
        return maps


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
        return Detector(core, size, base.mean, base.std, frozen)
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
    layers = dict(core.backbone.named_children())
    return [layers["body"].conv1, layers["body"].bn1, layers["body"].layer1] if "fpn" in layers else []


def _torchvision(base: Base, directory: Path, num_classes: int, pretrained: bool) -> FCOS | RetinaNet | SSD:
    if base.architecture not in TORCHVISION:
        raise InvalidArgument(
            {"base": f"{base.architecture} is none of torchvision's detectors in one stage: {', '.join(TORCHVISION)}"}
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
    found: FCOS | RetinaNet | SSD = core
    return found


def _replace_classifier(core: Any, num_classes: int) -> tuple[str, ...]:
    """Gives a detector new last layers for its own classes; returns the prefixes of their names."""
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


def _centres_and_sides(boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    left_top, right_bottom = boxes[..., :2], boxes[..., 2:]
    return (left_top + right_bottom) / 2, right_bottom - left_top
