"""Encoders of the Hugging Face library with their tokenizers, what later versions go on from, and texts as batches."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

from luthier.errors import InvalidArgument
from luthier.task import Run
from luthier.toolkit.batches import pad

SOURCE = "source"
"""The folder of a bundle with what a later version goes on from: a base like any other, and the head."""
HEAD_FILE = "head.safetensors"


@dataclass(frozen=True)
class Tokens:
    """Texts as token numbers, each an int64 tensor [tokens]; `lengths` is int64 [texts]."""

    ids: Sequence[torch.Tensor]
    lengths: np.ndarray
    pad_id: int

    def batch(self, indices: np.ndarray, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """`input_ids` and `attention_mask`, int64 [batch, longest], of some texts, padded to the longest."""
        ids, mask = pad([self.ids[i] for i in indices], self.pad_id)
        return ids.to(device), mask.to(device)


def load_encoder(run: Run, max_length: int, *, pretrained: bool = True) -> tuple[Any, Any]:
    """Returns the encoder and the tokenizer in `run.base`; with `pretrained` false, the encoder with random weights.

    Raises InvalidArgument where they do not suit: the base is none, lacks weights, or reads fewer tokens.
    """
    if run.base is None:
        raise InvalidArgument({"base": "name an encoder of the catalogue, or an earlier version of a model"})
    if run.warm_start and not pretrained:
        raise InvalidArgument({"config.from_scratch": "an earlier version is to go on from, not to begin anew"})
    base = run.base / SOURCE if run.warm_start else run.base
    if not base.is_dir():
        raise InvalidArgument(
            {"base": "this version keeps no weights to go on from; name its own base, or a newer one"}
        )
    encoder = _pretrained(base) if pretrained else _random(base)
    tokenizer = AutoTokenizer.from_pretrained(
        base, local_files_only=True, padding_side="right", truncation_side="right"
    )
    if not tokenizer.is_fast or tokenizer.pad_token is None or not tokenizer("").input_ids:
        raise InvalidArgument(
            {"base": "its tokenizer needs a tokenizer.json, a padding token, and a token that begins or ends each text"}
        )
    longest = min(tokenizer.model_max_length, getattr(encoder.config, "max_position_embeddings", math.inf))
    if max_length > longest:
        raise InvalidArgument(
            {"config.max_length": f"{max_length} is more than the {longest} tokens that the base reads"}
        )
    return encoder, tokenizer


def save_source(directory: Path, encoder: Any, tokenizer: Any, head: nn.Linear, rows: Sequence[str]) -> None:
    """Writes what a later version goes on from into a bundle: encoder and tokenizer, and the head's rows by name.

    The weights are kept in 16 bits, which halves them: training on moves them by more than what that rounds off.
    """
    weights = {name: tensor.half().cpu() for name, tensor in encoder.state_dict().items()}
    encoder.save_pretrained(directory / SOURCE, state_dict=weights)
    tokenizer.save_pretrained(directory / SOURCE)
    kept = {"weight": head.weight.detach().cpu(), "bias": head.bias.detach().cpu()}
    save_file(kept, directory / SOURCE / HEAD_FILE, metadata={"rows": json.dumps(rows)})


def earlier_head(run: Run) -> dict[str, torch.Tensor]:
    """The rows of the head of the version that `run` goes on from, each its weights and bias, float32 [hidden + 1].

    Empty where it begins with a base.
    """
    if run.base is None or not run.warm_start:
        return {}
    with safe_open(run.base / SOURCE / HEAD_FILE, framework="pt") as kept:
        rows = torch.cat([kept.get_tensor("weight"), kept.get_tensor("bias")[:, None]], dim=1)
        return dict(zip(json.loads(kept.metadata()["rows"]), rows, strict=True))


@torch.no_grad()
def carry_over(earlier: dict[str, torch.Tensor], head: nn.Linear, rows: Sequence[str]) -> None:
    """Sets those rows of a head that an earlier one has by the same name."""
    for i, name in enumerate(rows):
        if name in earlier:
            head.weight[i], head.bias[i] = earlier[name][:-1], earlier[name][-1]


def random_inputs(tokenizer: Any, batch: int, length: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Tokens without meaning, the first text `length` long and each further one shorter, down to one token."""
    generator = torch.Generator().manual_seed(batch)
    texts = [torch.randint(len(tokenizer), (max(1, length - i),), generator=generator) for i in range(batch)]
    ids, mask = pad(texts, tokenizer.pad_token_id)
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def spell_out_attention(encoder: Any) -> None:
    """Has attention computed by plain operators, for export.

    They become fewer than those of the fused kernel, which guards against rows without a token: the file is 4 to 12 %
    faster.
    """
    encoder.set_attn_implementation("eager")


def _pretrained(base: Path) -> Any:
    transformers_logging.disable_progress_bar()
    encoder, loading = AutoModel.from_pretrained(
        base, local_files_only=True, dtype=torch.float32, output_loading_info=True
    )
    # Many checkpoints come without a pooler, and nothing here uses it. Anything else would start from random weights.
    if missing := sorted(key for key in loading["missing_keys"] if not key.startswith("pooler.")):
        raise InvalidArgument({"base": f"its checkpoint lacks weights of the encoder, {missing[0]} for one"})
    return encoder


def _random(base: Path) -> Any:
    config = AutoConfig.from_pretrained(base, local_files_only=True)
    return AutoModel.from_config(config, dtype=torch.float32)
