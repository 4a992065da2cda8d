"""Batches of sequences with little padding."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

POOL = 50
"""Batches that are drawn and sorted together. More waste less padding, and shuffle less."""


def length_buckets(lengths: np.ndarray, batch_size: int, random: np.random.Generator) -> Iterator[np.ndarray]:
    """Yields the indices of one epoch's batches, each of sequences of about the same length, in random order.

    `lengths` has the shape [examples]. Every index comes once; there are ceil(examples / batch_size) batches, of which
    one may be smaller than the others.
    """
    shuffled = random.permutation(len(lengths))
    pools = (shuffled[start : start + POOL * batch_size] for start in range(0, len(shuffled), POOL * batch_size))
    batches = [batch for pool in pools for batch in in_order_of_length(lengths, batch_size, pool)]
    for position in random.permutation(len(batches)):
        yield batches[position]


def in_order_of_length(lengths: np.ndarray, batch_size: int, indices: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """Yields the indices (all, where none are given) in batches, shortest sequences first."""
    indices = np.arange(len(lengths)) if indices is None else indices
    ordered = indices[np.argsort(lengths[indices], kind="stable")]
    for start in range(0, len(ordered), batch_size):
        yield ordered[start : start + batch_size]


def pad(sequences: Sequence[torch.Tensor], value: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns sequences as one int64 tensor [batch, longest], and the mask that is 1 on them and 0 behind."""
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    padded = pad_sequence(list(sequences), batch_first=True, padding_value=value)
    mask = torch.arange(padded.shape[1]) < lengths[:, None]
    return padded, mask.long()
