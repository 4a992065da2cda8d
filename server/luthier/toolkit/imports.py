"""A team's own checkpoint as a base: its tensors matched with an architecture, in 32 bits, by the library's names."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from luthier.errors import InvalidArgument
from luthier.toolkit import architectures
from luthier.toolkit.architectures import Architecture
from luthier.toolkit.backbones import BASE_FILE, Base, read_state

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
"""What makes a checkpoint an encoder of the Hugging Face library."""
TOKENIZER_FILE = "tokenizer.json"
TEXT_TASKS = ("text-classification", "entity-recognition")
TOKENS = 128
"""Length of the text that an encoder's multiply-accumulates are counted on."""
SHOWN = 10
"""Tensors that an error names."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What became of the tensors of a checkpoint; luthier.v1.ImportReport says what each field is."""

    matched: int
    dropped: Sequence[str] = ()
    missing: Sequence[str] = ()
    unexpected: Sequence[str] = ()
    dtypes: Sequence[str] = ()
    twin: str = ""
    prefix: str = ""


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A base that was written, and what there is to say about it."""

    base: Base
    tasks: Sequence[str]
    num_parameters: int
    gmacs: float
    report: Report
    tokens: int = 0
    """Most tokens that an encoder reads."""


@dataclass(frozen=True)
class Matched:
    """A checkpoint that fits an architecture."""

    state: dict[str, torch.Tensor]
    """Tensors for the architecture, complete but for its head."""
    report: Report
    whole: bool
    """Whether the head is complete too."""


def import_checkpoint(
    id: str, architecture: str, weights: Path, files: Mapping[str, Path], preprocessing: Mapping[str, Any], target: Path
) -> Imported:
    """Writes a base into the folder `target`, which is made.

    `files` are further files by their path within the base; with a `config.json` among them the checkpoint is one of
    an encoder. `preprocessing` replaces the architecture's `input_size`, `mean` and `std`. Raises InvalidArgument, with
    all there is to say, where the file holds more than weights or anything but the head is missing.
    """
    try:
        stored = read_state(weights, keep_dtype=True)
    except ValueError as error:
        raise InvalidArgument({"weights": f"it {error}"}) from error
    dtypes = sorted({str(t.dtype).removeprefix("torch.") for t in stored.values() if t.is_floating_point()})
    state = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in stored.items()}
    target.mkdir()
    for path, source in files.items():
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target / path)
    if CONFIG_FILE in files:
        imported = _import_encoder(id, architecture, state, dtypes, target)
    else:
        imported = _import_vision(id, architectures.resolve(architecture), state, dtypes, preprocessing, target)
    content = {key: value for key, value in asdict(imported.base).items() if value not in ((), (0, 0))}
    (target / BASE_FILE).write_text(json.dumps(content, indent=2), encoding="utf-8")
    return imported


def _import_vision(
    id: str,
    architecture: Architecture,
    state: dict[str, torch.Tensor],
    dtypes: list[str],
    preprocessing: Mapping[str, Any],
    target: Path,
) -> Imported:
    matched = match(architecture, state, dtypes)
    # Tensors of the same memory, such as tied weights, are stored once each.
    save_file({name: tensor.contiguous().clone() for name, tensor in matched.state.items()}, target / WEIGHTS_FILE)
    usual = {"input_size": architecture.input_size, "mean": architecture.mean, "std": architecture.std}
    return Imported(
        base=Base(
            id=id,
            library=architecture.library,
            architecture=architecture.name,
            weights=WEIGHTS_FILE,
            num_classes=architecture.num_classes if matched.whole else 0,
            **{**usual, **preprocessing},
        ),
        tasks=architecture.tasks,
        num_parameters=architecture.num_parameters,
        gmacs=architectures.gmacs(architecture.library, architecture.name, architecture.input_size),
        report=matched.report,
    )


def match(architecture: Architecture, state: dict[str, torch.Tensor], dtypes: Sequence[str] = ()) -> Matched:
    """Fits a checkpoint to an architecture: by its names, behind a common prefix, or by those of a torchvision twin.

    A layer of the head that is not complete or has other classes is dropped. BatchNorm's counts of batches, which some
    exporters leave out and only training with a cumulative average reads, are 0 where they are missing. Raises
    InvalidArgument listing what else is missing or has another shape.
    """
    body = {name for name in architecture.shapes if name not in architecture.head}
    # The most tensors wins; of equals the first, which is the architecture's own names.
    twin, prefix = max(
        [("", found) for found in _prefixes(state, architecture.shapes)]
        + [(twin, found) for twin in architecture.twins for found in _prefixes(state, architectures.twin_shapes(twin))],
        key=lambda way: len(body & _renamed(state, *way).keys()),
    )
    renamed = _renamed(state, twin, prefix)
    for name, shape in architecture.shapes.items():
        if name.endswith(".num_batches_tracked") and name not in architecture.head and name not in renamed:
            renamed[name] = torch.zeros(shape, dtype=torch.int64)

    bad = [n for n, shape in architecture.shapes.items() if n not in renamed or renamed[n].shape != shape]
    if lacking := [name for name in bad if name in body]:
        wrong = [f"{n} {_fault(architecture.shapes[n], renamed.get(n))}" for n in lacking[:SHOWN]]
        more = f", and {len(lacking) - SHOWN} more" if len(lacking) > SHOWN else ""
        raise InvalidArgument(
            {
                "weights": f"{len(lacking)} of the {len(body)} tensors of {architecture.name} without its head cannot "
                f"be filled: {', '.join(wrong)}{more}. The file's own begin with {', '.join(list(state)[:3])}"
            }
        )
    layers = {name.rpartition(".")[0] for name in bad}
    left_out = {name for name in architecture.head if name.rpartition(".")[0] in layers}
    kept = {name: renamed[name] for name in architecture.shapes if name not in left_out}
    report = Report(
        matched=len(kept),
        dropped=sorted(left_out & renamed.keys()),
        missing=sorted(left_out - renamed.keys()),
        unexpected=sorted(renamed.keys() - architecture.shapes.keys()),
        dtypes=dtypes,
        twin=twin,
        prefix=prefix,
    )
    return Matched(kept, report, whole=not left_out)


def _prefixes(state: Mapping[str, torch.Tensor], shapes: Mapping[str, torch.Size]) -> list[str]:
    """What names may begin with before those of the architecture: nothing, or what precedes its first tensor."""
    first = next(iter(shapes))
    return ["", *(name.removesuffix(first) for name in state if name.endswith(f".{first}"))]


def _renamed(state: Mapping[str, torch.Tensor], twin: str, prefix: str) -> dict[str, torch.Tensor]:
    bare = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return architectures.translate(bare, twin) if twin else bare


def _fault(shape: torch.Size, tensor: torch.Tensor | None) -> str:
    return "is missing" if tensor is None else f"has the shape {list(tensor.shape)}, not {list(shape)}"


def _import_encoder(
    id: str, architecture: str, state: dict[str, torch.Tensor], dtypes: list[str], target: Path
) -> Imported:
    from transformers import AutoConfig, AutoModel
    from transformers.utils import logging

    if not (target / TOKENIZER_FILE).is_file():
        raise InvalidArgument({"files": f"an encoder needs its {TOKENIZER_FILE} beside its {CONFIG_FILE}"})
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, target / WEIGHTS_FILE)
    try:
        config = AutoConfig.from_pretrained(target, local_files_only=True, trust_remote_code=False)
        module, loading = AutoModel.from_pretrained(
            target,
            config=config,
            local_files_only=True,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except MemoryError:
        raise
    except Exception as error:  # A config.json may hold anything, and is first looked at where it is used.
        why = str(error).replace(str(target), "the base")
        raise InvalidArgument({"files": f"config.json and the weights make no encoder: {why}"}) from error
    if type(module).__name__ != architecture:
        raise InvalidArgument({"architecture": f"config.json is that of a {type(module).__name__}, not {architecture}"})
    missing = sorted(loading["missing_keys"])
    expected = module.state_dict()
    # Many checkpoints come without a pooler, and no task here uses it.
    if lacking := [name for name in missing if not name.startswith("pooler.")]:
        more = f", and {len(lacking) - SHOWN} more" if len(lacking) > SHOWN else ""
        raise InvalidArgument(
            {
                "weights": f"{len(lacking)} of the {len(expected)} tensors of {architecture} are missing: "
                f"{', '.join(lacking[:SHOWN])}{more}"
            }
        )
    kept = {name: tensor for name, tensor in expected.items() if name not in missing}
    save_file({name: tensor.contiguous().clone() for name, tensor in kept.items()}, target / WEIGHTS_FILE)
    tokens = getattr(config, "max_position_embeddings", TOKENS)
    # Some count positions from 2 on.
    counted = min(TOKENS, tokens - 2)
    inputs = torch.ones(1, counted, dtype=torch.int64)
    return Imported(
        base=Base(id=id, library="transformers", architecture=architecture, weights=WEIGHTS_FILE),
        tasks=TEXT_TASKS,
        num_parameters=sum(parameter.numel() for parameter in module.parameters()),
        gmacs=architectures.count_gmacs(lambda: module(input_ids=inputs)) * TOKENS / counted,
        tokens=tokens,
        report=Report(matched=len(kept), missing=missing, unexpected=sorted(loading["unexpected_keys"]), dtypes=dtypes),
    )
