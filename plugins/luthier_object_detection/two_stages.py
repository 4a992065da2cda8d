"""Detectors that look twice: torchvision's Faster R-CNN (Ren et al., 2015).

A first stage proposes regions, a second one says what is in each and where exactly. torchvision chooses the proposals
by steps whose results have any number of rows, which no batched graph can hold. Here they are as many for each image,
the same ones first, and those that torchvision would have left out get the score 0.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import roi_align

from luthier_object_detection.detectors import Detector, Target, moved

ROUNDS = 32
"""Steps of the suppression among proposals. It is exact where no chain of boxes, each suppressed but for the one before
it, is longer."""


class TwoStages(Detector):
    """uint8 [batch, height, width, 3] to scores [batch, proposals, classes], boxes [batch, proposals, classes, 4].

    Both are 0 where a proposal was left out.
    """

    def outputs(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """The feature maps by name, finest first."""
        return dict(self.core.backbone(self.normalise(pixels)))

    def decode(self, outputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores and boxes from the feature maps."""
        proposals, chosen = self._proposals(list(outputs.values()))
        logits, moves = self._look_closer(outputs, proposals)
        boxes = moved(proposals.unsqueeze(-2), moves, self.core.roi_heads.box_coder.weights)
        # Class 0 is the background.
        scores = logits.softmax(-1)[..., 1:] * chosen.unsqueeze(-1)
        return scores, (boxes[..., 1:, :] / self.scale).clamp(0, 1) * chosen[..., None, None]

    def comparable(self, outputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Scores and boxes, each of their columns in ascending order: proposals of one score come in any."""
        return [output.sort(1).values for output in outputs]

    def loss(self, outputs: dict[str, torch.Tensor], targets: list[Target]) -> torch.Tensor:
        """torchvision's losses of both stages, the means over the batch."""
        features = OrderedDict((name, feature.float()) for name, feature in outputs.items())
        images = ImageList(torch.empty(1, 3, *self.size, device="meta"), [self.size] * len(targets))
        shifted = [{"boxes": target["boxes"], "labels": target["labels"] + 1} for target in targets]
        stages = self.core.rpn, self.core.roi_heads
        modes = [stage.training for stage in stages]
        for stage in stages:
            stage.training = True  # Of them alone, not of the layers in them: else they give no loss.
        try:
            proposals, first = self.core.rpn(images, features, shifted)
            _, second = self.core.roi_heads(features, proposals, images.image_sizes, shifted)
        finally:
            for stage, mode in zip(stages, modes, strict=True):
                stage.training = mode
        total: torch.Tensor = sum((first | second).values())
        return total

    def parts(self) -> tuple[nn.Module, nn.Module]:
        """What comes from the base, and what stands on it."""
        return self.core.backbone, nn.ModuleList([self.core.rpn, self.core.roi_heads])

    @property
    def _anchor_generator(self) -> Any:
        return self.core.rpn.anchor_generator

    def _proposals(self, features: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Boxes of the first stage in pixels, [batch, proposals, 4], and which of them torchvision would propose."""
        rpn = self.core.rpn
        objectness, moves = rpn.head(features)
        boxes, scores = [], []
        levels = zip(objectness, moves, torch.split(self.anchors, self.places), strict=True)
        for level_scores, level_moves, anchors in levels:
            flat_scores = level_scores.permute(0, 2, 3, 1).flatten(1).sigmoid()
            flat_moves = level_moves.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3)
            best, places = flat_scores.topk(min(rpn._pre_nms_top_n["testing"], len(anchors)), 1)
            their_moves = flat_moves.gather(1, places.unsqueeze(-1).expand(-1, -1, 4))
            found = moved(anchors[places], their_moves, rpn.box_coder.weights)
            found = torch.minimum(found.clamp(min=0), self.scale)
            sides = found[..., 2:] - found[..., :2]
            allowed = (sides >= rpn.min_size).all(-1) & (best >= rpn.score_thresh)
            kept = _survivors(found, allowed, rpn.nms_thresh)
            boxes.append(found)
            scores.append(torch.where(kept, best, -1.0))
        all_boxes, all_scores = torch.cat(boxes, 1), torch.cat(scores, 1)
        best, places = all_scores.topk(min(rpn._post_nms_top_n["testing"], all_scores.shape[1]), 1)
        return all_boxes.gather(1, places.unsqueeze(-1).expand(-1, -1, 4)), best >= 0

    def _look_closer(
        self, features: dict[str, torch.Tensor], proposals: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Class logits [batch, proposals, classes] and moves [batch, proposals, classes, 4] of the second stage.

        Each proposal is looked at on the feature map that suits its size (Lin et al., 2017, equation 1).
        """
        heads = self.core.roi_heads
        pool = heads.box_roi_pool
        count = proposals.shape[1]
        owners = torch.arange(proposals.shape[0], device=proposals.device).to(proposals.dtype)
        regions = torch.cat([owners.view(-1, 1, 1).expand(-1, count, 1), proposals], -1).flatten(0, 1)
        maps = [features[name] for name in pool.featmap_names if name in features]
        depths = [-round(math.log2(feature.shape[-2] / self.size[0])) for feature in maps]
        sides = ((regions[:, 3] - regions[:, 1]) * (regions[:, 4] - regions[:, 2])).sqrt()
        wanted = (pool.canonical_level + (sides / pool.canonical_scale).log2() + 1e-6).floor()
        wanted = wanted.clamp(depths[0], depths[-1]).view(-1, 1, 1, 1)
        pooled: Any = 0.0
        for level, (feature, depth) in enumerate(zip(maps, depths, strict=True), depths[0]):
            looked = roi_align(feature, regions, pool.output_size, 2.0**-depth, pool.sampling_ratio)
            pooled = torch.where(wanted == level, looked, pooled)
        logits, moves = heads.box_predictor(heads.box_head(pooled))
        return logits.reshape(-1, count, logits.shape[-1]), moves.reshape(-1, count, logits.shape[-1], 4)


def _survivors(boxes: torch.Tensor, allowed: torch.Tensor, iou: float) -> torch.Tensor:
    """Non-maximum suppression among the allowed ones of [batch, n, 4] boxes, the best first: bool [batch, n].

    Whether a box is kept depends on those before it alone, so that repeating the rule for all of them at once settles
    one after the other.
    """
    left_top = torch.maximum(boxes[..., :, None, :2], boxes[..., None, :, :2])
    right_bottom = torch.minimum(boxes[..., :, None, 2:], boxes[..., None, :, 2:])
    shared = (right_bottom - left_top).clamp(min=0).prod(-1)
    areas = (boxes[..., 2:] - boxes[..., :2]).prod(-1)
    union = areas[..., :, None] + areas[..., None, :] - shared
    before = torch.ones(boxes.shape[1], boxes.shape[1], device=boxes.device).triu(1)
    suppresses = (shared > iou * union) * before
    kept = allowed
    for _ in range(ROUNDS):
        suppressed = (kept.unsqueeze(-2).to(boxes.dtype) @ suppresses).squeeze(-2)
        kept = allowed & (suppressed < 0.5)
    return kept
