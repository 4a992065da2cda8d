"""Label maps, uint8 [height, width] of class indices: from a model's logits, and to and from messages."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from luthier import images
from luthier.tasks.semantic_segmentation.v1 import semantic_segmentation_pb2 as pb

MAX_CLASSES = 255
"""Indices are bytes, and 255 is left for pixels that count for nothing."""
_STRIP_PIXELS = 1 << 18
"""Pixels that are decided at a time: what they take fits into a processor's cache, whatever the image's size."""


def classes_at(logits: np.ndarray, height: int, width: int) -> np.ndarray:
    """Enlarges float32 [classes, h, w] to an image's size and returns the index of the largest, uint8 [height, width].

    Bilinear between the centres of the grid's cells, without antialiasing where it shrinks: what PyTorch's
    `interpolate(mode="bilinear", align_corners=False)` computes. Of equal logits the first wins.
    """
    candidates = _candidates(logits)
    top, bottom, down = _neighbours(logits.shape[1], height)
    left, right, across = _neighbours(logits.shape[2], width)
    down = down[:, None]
    result = np.empty((height, width), dtype=np.uint8)
    rows = max(1, _STRIP_PIXELS // width)
    for start in range(0, height, rows):
        strip = slice(start, start + rows)
        best = np.empty(0)
        for index in candidates:
            plane = logits[index]
            narrow = plane[top[strip]] * (1 - down[strip]) + plane[bottom[strip]] * down[strip]
            wide = narrow.take(left, axis=1)
            wide *= 1 - across
            wide += narrow.take(right, axis=1) * across
            if not best.size:
                best = wide
                result[strip] = index
                continue
            better = wide > best
            np.copyto(best, wide, where=better)
            result[strip][better] = index
    return result


def to_prediction(label_map: np.ndarray, labels: Sequence[str], format: int) -> pb.Prediction:
    """A label map as a message, its mask in a format of pb.MaskFormat."""
    height, width = label_map.shape
    pixels = np.bincount(label_map.ravel(), minlength=len(labels))
    prediction = pb.Prediction(
        width=width,
        height=height,
        classes=[
            pb.ClassArea(label=label, pixels=count, share=count / label_map.size)
            for label, count in zip(labels, pixels.tolist(), strict=True)
        ],
    )
    if format == pb.MASK_FORMAT_PNG:
        prediction.png = images.encode_png(label_map)
    else:
        prediction.masks.extend(
            pb.RleMask(label=labels[index], counts=counts) for index, counts in _run_lengths(label_map)
        )
    return prediction


def of_prediction(prediction: pb.Prediction) -> np.ndarray:
    """The label map of a message, uint8 [height, width] of indices of its `classes`."""
    if prediction.png:
        return images.decode_values(prediction.png)
    index_of = {area.label: index for index, area in enumerate(prediction.classes)}
    counts = [np.array(mask.counts, dtype=np.int64) for mask in prediction.masks]
    starts = np.concatenate([np.cumsum(runs)[:-1:2] for runs in (_even(runs) for runs in counts)])
    lengths = np.concatenate([runs[1::2] for runs in counts])
    classes = np.repeat(
        np.array([index_of[mask.label] for mask in prediction.masks], dtype=np.uint8), [len(r) // 2 for r in counts]
    )
    order = np.argsort(starts)
    columns = np.repeat(classes[order], lengths[order]).reshape(prediction.width, prediction.height)
    return columns.T


def _even(runs: np.ndarray) -> np.ndarray:
    """Run lengths with the run outside at the end, which may be left out."""
    return runs if len(runs) % 2 else np.append(runs, 0)


def _run_lengths(label_map: np.ndarray) -> list[tuple[int, list[int]]]:
    """Each index that occurs with its runs: down the columns, lengths outside and inside by turns."""
    columns = label_map.T.ravel()
    starts = np.concatenate([[0], np.flatnonzero(columns[1:] != columns[:-1]) + 1])
    ends = np.append(starts[1:], columns.size)
    classes = columns[starts]
    found = []
    for index in np.unique(classes):
        inside = classes == index
        bounds = np.stack([starts[inside], ends[inside]], axis=1).ravel()
        counts = np.diff(bounds, prepend=0, append=columns.size)
        found.append((int(index), (counts if counts[-1] else counts[:-1]).tolist()))
    return found


def _neighbours(size: int, target: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of `target` places along `size` cells: the cells on both sides, and how far it is to the second."""
    places = np.maximum((np.arange(target, dtype=np.float32) + np.float32(0.5)) * np.float32(size / target) - 0.5, 0)
    first = places.astype(np.int64)
    return first, np.minimum(first + 1, size - 1), (places - first).astype(np.float32)


def _candidates(logits: np.ndarray) -> list[int]:
    """Indices that can win anywhere. All others need not be enlarged.

    Between four neighbours every class stays between its least and its largest value there. So one whose largest is
    below another's least loses all over that cell.
    """
    least, largest = _over_cells(np.minimum, logits), _over_cells(np.maximum, logits)
    return [int(index) for index in np.flatnonzero((largest >= least.max(axis=0)).any(axis=(1, 2)))]


def _over_cells(extreme: np.ufunc, logits: np.ndarray) -> np.ndarray:
    """The least or largest of each four neighbours: [classes, h - 1, w - 1], or of fewer where a side is 1."""
    rows = extreme(logits[:, 1:], logits[:, :-1]) if logits.shape[1] > 1 else logits
    cells: np.ndarray = extreme(rows[:, :, 1:], rows[:, :, :-1]) if logits.shape[2] > 1 else rows
    return cells
