"""Detectors that look at all places of an image at once: torchvision's FCOS, RetinaNet and SSD, and FCOS on timm.

FCOS (Tian et al., 2019) predicts from each place of a feature map how far away the four edges of the object around it
are; RetinaNet (Lin et al., 2017) and SSD (Liu et al., 2016) predict how boxes of set shapes have to be moved. The
losses are torchvision's own. The input has one size, so the places and the set shapes are constants of the graph.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD
from torchvision.ops import FeaturePyramidNetwork, box_iou

from luthier.toolkit.vision import Normalise

EXTRA_LEVELS = 1
"""Coarser maps that a pyramid makes from the last one of its backbone."""
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
        core: nn.Module,
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

    def comparable(self, outputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Scores and boxes in a form where equal numbers mean equal detections, to compare two runtimes by."""
        return list(outputs)

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

    @property
    def _anchor_generator(self) -> Any:
        return self.core.anchor_generator

    @torch.no_grad()
    def _lay_out(self) -> tuple[torch.Tensor, list[int]]:
        """All anchors, float32 [places, 4] in pixels, and how many each feature map has."""
        training = self.training
        self.eval()
        images = torch.zeros(1, 3, *self.size)
        features = list(self.core.backbone(images).values())
        (anchors,) = self._anchor_generator(ImageList(images, [self.size]), features)
        self.train(training)
        shapes = self._anchor_generator.num_anchors_per_location()
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
        """Boxes from how anchors are moved and scaled."""
        coder = self.core.box_coder if isinstance(self.core, SSD) else self.core.head.regression_head.box_coder
        return moved(self.anchors, moves, coder.weights)


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


def moved(boxes: torch.Tensor, moves: torch.Tensor, weights: Sequence[float]) -> torch.Tensor:
    """Boxes [..., 4] after moves [..., 4] of their centres and of the logarithms of their sides.

    Moves are in units of the sides, each divided by its weight, as torchvision's box coders have it.
    """
    centres, sides = _centres_and_sides(boxes)
    weighted = moves / torch.tensor(weights, device=moves.device)
    middles = centres + weighted[..., :2] * sides
    halves = weighted[..., 2:].clamp(max=MOST_LOG_SCALE).exp() * sides / 2
    return torch.cat([middles - halves, middles + halves], -1)


def _centres_and_sides(boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    left_top, right_bottom = boxes[..., :2], boxes[..., 2:]
    return (left_top + right_bottom) / 2, right_bottom - left_top
