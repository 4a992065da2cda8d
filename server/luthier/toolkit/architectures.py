"""Vision architectures by name: the tensors they hold, and how torchvision's names for them become timm's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import timm
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from luthier.errors import InvalidArgument

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

TWINS = {
    "convnext_base": "convnext_base",
    "convnext_small": "convnext_small",
    "convnext_tiny": "convnext_tiny",
    "efficientnet_b0": "efficientnet_b0",
    "efficientnet_b1": "efficientnet_b1",
    "efficientnet_b2": "efficientnet_b2",
    "efficientnet_b3": "efficientnet_b3",
    "mnasnet0_5": "mnasnet_050",
    "mnasnet1_0": "mnasnet_100",
    "mobilenet_v2": "mobilenetv2_100",
    "mobilenet_v3_large": "mobilenetv3_large_100",
    "mobilenet_v3_small": "mobilenetv3_small_100",
    "vgg11": "vgg11",
    "vgg16": "vgg16",
    "vgg16_bn": "vgg16_bn",
}
"""Classifiers of torchvision and the model of timm that computes the same, with other names for its tensors, in the
same order. A test holds each pair together. Others, such as the ResNets and DenseNets, have the same names in both."""

DETECTORS = (
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "fcos_resnet50_fpn",
    "retinanet_resnet50_fpn",
    "retinanet_resnet50_fpn_v2",
    "ssdlite320_mobilenet_v3_large",
)
SEGMENTERS = (
    "deeplabv3_mobilenet_v3_large",
    "deeplabv3_resnet101",
    "deeplabv3_resnet50",
    "fcn_resnet50",
    "lraspp_mobilenet_v3_large",
)
"""Whole models of torchvision, kept under its own names."""

_SEGMENTER_SIDE = 520
"""What torchvision's segmenters were trained at."""
_HEADS = ("roi_heads.box_predictor.", "head.", "classifier.", "aux_classifier.")
"""Where the whole models keep what depends on the number of classes; all of it is trained anew for others."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A vision model without its weights."""

    library: str
    name: str
    tasks: tuple[str, ...]
    shapes: Mapping[str, torch.Size]
    """Of each tensor of its state dict."""
    num_parameters: int
    head: frozenset[str]
    """Tensors that depend on the number of classes."""
    input_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_classes: int
    twins: tuple[str, ...] = ()
    """Models of torchvision that compute the same under other names."""


def resolve(name: str) -> Architecture:
    """The vision architecture of a name, of timm or of torchvision; raises InvalidArgument where there is none.

    A classifier of torchvision with a twin gives the twin, with the preprocessing of torchvision's weights.
    """
    if name in DETECTORS + SEGMENTERS:
        return _whole(name)
    if name in TWINS:
        return _timm(TWINS[name], twins=(name,))
    if timm.is_model(name.partition(".")[0]):
        try:
            return _timm(name, twins=tuple(twin for twin, of in TWINS.items() if of == name))
        except (RuntimeError, AssertionError) as error:  # Where what follows the dot is no tag of its weights.
            raise InvalidArgument({"architecture": f"timm has no {name}"}) from error
    if name in torchvision.models.list_models():
        why = f"torchvision's {name} has no twin in timm that computes the same; known are {', '.join(TWINS)}"
    else:
        why = f"{name!r} is no model of timm or torchvision, nor does a config.json make it an encoder"
    raise InvalidArgument({"architecture": why})


def translate(state: Mapping[str, torch.Tensor], twin: str) -> dict[str, torch.Tensor]:
    """Tensors under torchvision's names, under those of timm's twin; names that torchvision does not know stay.

    Both keep them in the same order, some in another shape (a 1x1 convolution as a matrix). Where the twin's BatchNorm
    adds another epsilon to the variance, the difference goes into the variance, so that the sum is the same.
    """
    with torch.device("meta"):
        ours, theirs = timm.create_model(TWINS[twin]), torchvision.models.get_model(twin, weights=None)
    modules = dict(ours.named_modules()), dict(theirs.named_modules())
    translated = dict(state)
    for (name, like), their_name in zip(ours.state_dict().items(), theirs.state_dict(), strict=True):
        if their_name not in state:
            continue
        tensor = translated.pop(their_name)
        translated[name] = tensor.reshape(like.shape) if tensor.numel() == like.numel() else tensor
        owner, _, attribute = name.rpartition(".")
        if attribute == "running_var":
            epsilon, their_epsilon = modules[0][owner].eps, modules[1][their_name.rpartition(".")[0]].eps
            translated[name] = tensor + (float(their_epsilon) - float(epsilon))
    return translated


def twin_shapes(twin: str) -> dict[str, torch.Size]:
    """Shapes of the tensors of a torchvision classifier."""
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in torchvision.models.get_model(twin).state_dict().items()}


def create_whole(name: str) -> nn.Module:
    """A detector or segmenter of torchvision with random weights, for the classes that it was published with."""
    arguments: dict[str, Any] = {"weights": None, "weights_backbone": None}
    module: nn.Module = torchvision.models.get_model(name, **arguments)
    return module.eval()


def gmacs(library: str, name: str, input_size: tuple[int, int]) -> float:
    """Billions of multiply-accumulates for one image: those of convolutions and matrix products."""
    if library == "timm":
        with torch.device("meta"):
            module = timm.create_model(name).eval()
            inputs: Any = torch.empty(1, 3, *input_size)
    else:
        module = create_whole(name)
        inputs = [torch.rand(3, *input_size)] if name in DETECTORS else torch.rand(1, 3, *input_size)
    return count_gmacs(lambda: module(inputs))


def count_gmacs(forward: Any) -> float:
    """Billions of multiply-accumulates of what a function computes."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        forward()
    return float(counter.get_total_flops()) / 2e9


def _timm(name: str, twins: tuple[str, ...]) -> Architecture:
    with torch.device("meta"):
        module: Any = timm.create_model(name, pretrained=False)
    config = module.pretrained_cfg
    heads = config.get("classifier") or ()
    prefixes = tuple(f"{head}." for head in ((heads,) if isinstance(heads, str) else heads))
    shapes = {tensor_name: tensor.shape for tensor_name, tensor in module.state_dict().items()}
    pyramid = len({level["reduction"] for level in module.feature_info}) > 1
    return Architecture(
        library="timm",
        name=name,
        tasks=("image-classification", "object-detection", "semantic-segmentation")[: 3 if pyramid else 1],
        shapes=shapes,
        num_parameters=sum(parameter.numel() for parameter in module.parameters()),
        head=frozenset(tensor_name for tensor_name in shapes if tensor_name.startswith(prefixes)),
        input_size=tuple(config["input_size"][1:]),
        mean=IMAGENET_MEAN if twins else tuple(config["mean"]),
        std=IMAGENET_STD if twins else tuple(config["std"]),
        num_classes=module.num_classes,
        twins=twins,
    )


def _whole(name: str) -> Architecture:
    module: Any = create_whole(name)
    shapes = {tensor_name: tensor.shape for tensor_name, tensor in module.state_dict().items()}
    if name in DETECTORS:
        transform = module.transform
        side = transform.fixed_size[0] if transform.fixed_size else transform.min_size[0]
        mean, std, task, num_classes = transform.image_mean, transform.image_std, "object-detection", 91
    else:
        side, mean, std, task, num_classes = (
            _SEGMENTER_SIDE, IMAGENET_MEAN, IMAGENET_STD, "semantic-segmentation", 21,
        )  # fmt: skip
    return Architecture(
        library="torchvision",
        name=name,
        tasks=(task,),
        shapes=shapes,
        num_parameters=sum(parameter.numel() for parameter in module.parameters()),
        head=frozenset(tensor_name for tensor_name in shapes if tensor_name.startswith(_HEADS)),
        input_size=(side, side),
        mean=tuple(mean),
        std=tuple(std),
        num_classes=num_classes,
    )
