"""Segmenters: uint8 pixels to logits on a grid, which are enlarged to an image's size outside.

A backbone of timm gets a small DeepLabV3+ head (Chen et al., "Encoder-decoder with atrous separable convolution for
semantic image segmentation", 2018). torchvision's segmenters keep their own, but for the last layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from luthier.errors import InvalidArgument
from luthier.toolkit.architectures import SEGMENTERS, create_whole
from luthier.toolkit.backbones import Base, create_backbone, load_weights
from luthier.toolkit.vision import Normalise

OUTPUT_STRIDE = 16
"""Of the backbone's deepest map where its architecture can be had so: more detail than the usual 32, at little cost."""
SKIP_STRIDE = 4
"""Of the map that brings back the borders."""
RATES = (2, 4, 6)
"""Dilations of the head: on a map of 16 cells a side, those of the paper, 6, 12 and 18, would reach past its edges."""
SKIP_CHANNELS = 32


class Segmenter(nn.Module):
    """Pixels, uint8 [batch, height, width, 3], to logits [batch, classes, rows, columns]."""

    def __init__(self, base: Base, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.normalise = Normalise(base.mean, base.std)
        self.backbone = backbone
        self.head = head

        self._frozen: list[nn.Module] = []

    def freeze_norms(self) -> Segmenter:
        """Keeps what the backbone's normalisations know of the data they were trained on; returns itself."""
        self._frozen = [module for module in self.backbone.modules() if isinstance(module, nn.BatchNorm2d)]
        return self

    def train(self, mode: bool = True) -> Segmenter:
        """As of any module, but frozen normalisations stay as they are used in evaluation."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Logits."""
        logits: torch.Tensor = self.head(self.backbone(self.normalise(pixels)))
        return logits


class DeepLabHead(nn.Module):
    """The maps of a backbone, coarse ones last, to logits on the grid of the finest that is used."""

    def __init__(self, channels: Sequence[int], width: int, num_classes: int) -> None:
        """`channels` are those of the map to bring back borders from, if there is one, and of the deepest."""
        super().__init__()
        self.branches = nn.ModuleList(
            [_pointwise(channels[-1], width), *(_separable(channels[-1], width, rate) for rate in RATES)]
        )
        self.pooled = _pointwise(channels[-1], width, norm=False)
        self.project = nn.Sequential(_pointwise(width * (len(RATES) + 2), width), nn.Dropout2d(0.1))
        self.skip = _pointwise(channels[0], SKIP_CHANNELS) if len(channels) > 1 else None
        self.refine = nn.Sequential(
            _separable(width + (SKIP_CHANNELS if self.skip else 0), width, 1), _separable(width, width, 1)
        )
        self.classify = nn.Conv2d(width, num_classes, 1)

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Logits."""
        deep = maps[-1]
        pooled = self.pooled(deep.mean((2, 3), keepdim=True)).expand(-1, -1, *deep.shape[2:])
        context = self.project(torch.cat([*(branch(deep) for branch in self.branches), pooled], dim=1))
        if self.skip is not None:
            fine = self.skip(maps[0])
            context = functional.interpolate(context, fine.shape[2:], mode="bilinear", align_corners=False)
            context = torch.cat([context, fine], dim=1)
        logits: torch.Tensor = self.classify(self.refine(context))
        return logits


class _Whole(nn.Module):
    """The classifier of one of torchvision's segmenters, on what its backbone returns."""

    def __init__(self, classifier: nn.Module, takes_all: bool) -> None:
        super().__init__()
        self.classifier = classifier
        self.takes_all = takes_all

    def forward(self, maps: dict[str, torch.Tensor]) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(maps if self.takes_all else maps["out"])
        return logits


def build(
    base: Base, directory: Path, num_classes: int, size: tuple[int, int], head_channels: int, *, pretrained: bool
) -> tuple[Segmenter, nn.Module]:
    """Returns a segmenter with a base's weights, and the part of it that starts at random.

    `size` is the input's (height, width). Raises InvalidArgument where the base does not suit.
    """
    if base.library == "torchvision":
        return _of_torchvision(base, directory, num_classes, pretrained)
    backbone: Any = _backbone(base, directory, size, pretrained)
    head = DeepLabHead(backbone.feature_info.channels(), head_channels, num_classes)
    return Segmenter(base, backbone, head), head


def _backbone(base: Base, directory: Path, size: tuple[int, int], pretrained: bool) -> nn.Module:
    """A timm backbone that returns the maps that the head takes, the finest first."""

    def create(*, pretrained: bool, **arguments: Any) -> Any:
        return create_backbone(base, directory, pretrained=pretrained, features_only=True, **arguments)

    stride: dict[str, Any] = {"output_stride": OUTPUT_STRIDE}
    with torch.device("meta"):
        try:
            probe = create(pretrained=False, **stride)
        except (TypeError, AssertionError, NotImplementedError):
            # How timm says that an architecture has the one stride only.
            stride = {}
            probe = create(pretrained=False)
    fixed = {"img_size": size} if probe.pretrained_cfg.get("fixed_input_size") else {}
    indices = [probe.feature_info.out_indices[i] for i in _used(probe.feature_info.reduction())]
    backbone: nn.Module = create(pretrained=pretrained, out_indices=indices, **stride, **fixed)
    return backbone


def _used(strides: Sequence[int]) -> tuple[int, ...]:
    """Which of a backbone's maps the head takes: the first as fine as SKIP_STRIDE at least, and the last."""
    fine = [index for index, stride in enumerate(strides) if stride >= SKIP_STRIDE]
    return (fine[0], len(strides) - 1) if strides[fine[0]] < strides[-1] else (len(strides) - 1,)


def _of_torchvision(base: Base, directory: Path, num_classes: int, pretrained: bool) -> tuple[Segmenter, nn.Module]:
    if base.architecture not in SEGMENTERS:
        raise InvalidArgument({"base": f"{base.architecture} is none of torchvision's {', '.join(SEGMENTERS)}"})
    model: Any = create_whole(base.architecture)
    classifier = model.classifier
    is_lraspp = base.architecture.startswith("lraspp")
    last = nn.ModuleList()
    for name in ("low_classifier", "high_classifier") if is_lraspp else (str(len(classifier) - 1),):
        channels = getattr(classifier, name).in_channels
        setattr(classifier, name, nn.Conv2d(channels, num_classes, 1))
        last.append(getattr(classifier, name))
    segmenter = Segmenter(base, model.backbone, _Whole(classifier, takes_all=is_lraspp))
    if not pretrained:
        return segmenter, last
    fresh = {id(parameter) for parameter in last.parameters()}
    needed = {name for name, tensor in model.state_dict(keep_vars=True).items() if id(tensor) not in fresh}
    state = {name: tensor for name, tensor in load_weights(base, directory).items() if name in needed}
    try:
        missing = needed.intersection(model.load_state_dict(state, strict=False).missing_keys)
    except RuntimeError as error:
        raise InvalidArgument({"base": f"the weights of {base.id} do not fit {base.architecture}: {error}"}) from error
    if missing:
        why = f"{len(missing)} of {len(needed)} tensors are missing, {min(missing)} for one"
        raise InvalidArgument({"base": f"the weights of {base.id} do not fit {base.architecture}: {why}"})
    return segmenter.freeze_norms(), last


def _pointwise(channels: int, width: int, *, norm: bool = True) -> nn.Sequential:
    """A 1x1 convolution. On a single cell, as after pooling, a batch's statistics are too few to normalise by."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 1, bias=not norm), *([nn.BatchNorm2d(width)] if norm else []), nn.ReLU()
    )


def _separable(channels: int, width: int, rate: int) -> nn.Sequential:
    """A 3x3 convolution of each channel by itself, then a 1x1 one."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=rate, dilation=rate, groups=channels, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        _pointwise(channels, width),
    )
