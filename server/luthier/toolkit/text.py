"""Encoders of the Hugging Face library with their tokenizers, and texts as batches of tokens."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

from luthier.errors import InvalidArgument
from luthier.task import Run
from luthier.toolkit.batches import pad


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
    if run.base is None or run.warm_start:
        why = "name an encoder of the catalogue; a model's version keeps its ONNX graph, not weights to go on from"
        raise InvalidArgument({"base": why})
    encoder = _pretrained(run.base) if pretrained else _random(run.base)
    tokenizer = AutoTokenizer.from_pretrained(
        run.base, local_files_only=True, padding_side="right", truncation_side="right"
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
