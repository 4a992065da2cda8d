"""Bases as PyTorch modules: what a base's folder says of itself, and timm models with the weights in it.

Nothing here asks the network, and no weight is left to chance: what a base lacks is an error.
"""

from __future__ import annotations

import json
import logging
import pickle
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from luthier.errors import InvalidArgument
from luthier.toolkit.architectures import resolve

BASE_FILE = "base.json"
"""In the folder of each base, beside its files; `bases` writes it."""
VISION = ("timm", "torchvision")
"""Libraries whose models look at images."""


@dataclass(frozen=True, kw_only=True)
class Base:
    """A pretrained model, as its folder describes it."""

    id: str
    library: str
    """`timm`, `torchvision` or `transformers`."""
    architecture: str
    """As the library names it; of timm with or without the tag of its weights."""
    weights: str
    """Its file of weights, within the folder."""
    input_size: tuple[int, int] = (0, 0)
    """(height, width) in pixels that it was trained at. This and what follows: of vision only."""
    mean: tuple[float, ...] = ()
    """Of each channel, of values between 0 and 1: what was subtracted in its training."""
    std: tuple[float, ...] = ()
    """Of each channel: what was divided by."""
    num_classes: int = 0
    """Of its classifier; 0: it has none."""


def read_base(directory: Path, libraries: Collection[str] = VISION) -> Base:
    """Returns what the folder of a base says; raises InvalidArgument where that is not a model of these libraries."""
    path = directory / BASE_FILE
    if not path.is_file():
        raise InvalidArgument({"base": f"it is no base of {' or '.join(libraries)}: it comes without {BASE_FILE}"})
    content = json.loads(path.read_text(encoding="utf-8"))
    sequences = {key: tuple(content[key]) for key in ("input_size", "mean", "std") if key in content}
    base = Base(**{**content, **sequences})
    if base.library not in libraries:
        raise InvalidArgument(
            {"base": f"{base.id} is a model of {base.library}; this takes one of {' or '.join(libraries)}"}
        )
    return base


def load_weights(base: Base, directory: Path) -> dict[str, torch.Tensor]:
    """All tensors of a base by the library's names, floating ones in float32; raises InvalidArgument."""
    try:
        return read_state(directory / base.weights)
    except ValueError as error:
        raise InvalidArgument({"base": f"{base.id}: {base.weights} {error}"}) from error


def create_backbone(base: Base, directory: Path, *, pretrained: bool = True, **timm_arguments: Any) -> nn.Module:
    """Returns a timm model with the weights of a base; with `pretrained` false, the same one with random weights.

    `timm_arguments` are those of `timm.create_model`, among them `num_classes`, and for feature maps `features_only`,
    `out_indices` and `output_stride`. A classifier of other than the base's number of classes starts at random. Raises
    InvalidArgument where anything else is missing from the weights.
    """
    if base.library != "timm":
        raise InvalidArgument({"base": f"{base.id} is a whole model of {base.library}, not a backbone of timm"})
    if not pretrained:
        return _create(base, False, {}, timm_arguments)
    state = load_weights(base, directory)
    _check_complete(base, state)
    return _create(base, True, {"state_dict": state}, timm_arguments)


def read_state(path: Path, *, keep_dtype: bool = False) -> dict[str, torch.Tensor]:
    """Reads a safetensors or torch file of weights, floating ones as float32. No code in a file is ever run.

    A state dict may lie under `state_dict` or `model`, and its names may begin with the `module.` of a wrapper. Raises
    ValueError, whose text goes on from the name of the file.
    """
    state = _read_safetensors(path) if _is_safetensors(path) else _read_torch(path)
    while state and all(name.startswith(_WRAPPERS) for name in state):
        state = {name.partition(".")[2]: tensor for name, tensor in state.items()}
    if keep_dtype:
        return state
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}


_NO_WEIGHTS = "is neither a safetensors file nor one of torch.save that holds weights alone"
_NESTED = ("state_dict", "model", "model_state_dict", "model_state")
_WRAPPERS = ("module.", "_orig_mod.")


def _is_safetensors(path: Path) -> bool:
    """By content: the length of a JSON header in 8 bytes, and the header's brace."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        state: dict[str, torch.Tensor] = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"is a damaged safetensors file: {error}") from error
    except (MemoryError, OSError):
        raise
    except Exception as error:  # Of a header that is JSON and describes no tensors.
        raise ValueError("is a damaged safetensors file") from error
    return state


def _read_torch(path: Path) -> dict[str, torch.Tensor]:
    try:
        with warnings.catch_warnings():
            # Of a pickle protocol that it may not read; then it raises, which is enough.
            warnings.simplefilter("ignore", UserWarning)
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error):
            raise ValueError(
                "holds more than weights, and would have to run code to be read, which is refused; "
                "save `model.state_dict()` alone, or as safetensors"
            ) from error
        raise ValueError(_NO_WEIGHTS) from error
    except (MemoryError, OSError):
        raise
    except Exception as error:  # An unpickler raises whatever strange bytes make it trip over.
        raise ValueError(_NO_WEIGHTS) from error
    for key in _NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content or not all(torch.is_tensor(v) for v in content.values()):
        raise ValueError("holds no state dict, which is a dictionary of names and tensors")
    return {str(name): tensor for name, tensor in content.items()}


def _check_complete(base: Base, state: Mapping[str, torch.Tensor]) -> None:
    # timm itself fills what is missing at random, and says so in its log at most, once the classes differ.
    architecture = resolve(base.architecture)
    needed = [name for name in architecture.shapes if name not in architecture.head]
    wrong = [name for name in needed if name not in state or state[name].shape != architecture.shapes[name]]
    if wrong:
        raise InvalidArgument(
            {
                "base": f"the weights of {base.id} lack {len(wrong)} of the {len(needed)} tensors of "
                f"{base.architecture}, or have them in another shape: {', '.join(wrong[:5])}"
            }
        )


def _create(base: Base, pretrained: bool, source: dict[str, Any], timm_arguments: dict[str, Any]) -> nn.Module:
    # It logs the tensors that a backbone of feature maps has no use for.
    logging.getLogger("timm").setLevel(logging.ERROR)
    # By custom_load, timm would read some architectures' weights by loaders that expect another format.
    overlay = {**source, "num_classes": base.num_classes, "custom_load": False}
    try:
        module: nn.Module = timm.create_model(
            base.architecture, pretrained=pretrained, pretrained_cfg_overlay=overlay, **timm_arguments
        )
    except RuntimeError as error:
        raise InvalidArgument({"base": f"timm cannot make {base.architecture} of {base.id}: {error}"}) from error
    return module
