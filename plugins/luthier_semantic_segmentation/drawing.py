"""A prediction as a picture: the image with its classes laid over it in colours, and a legend below."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from luthier import images
from luthier.task import Picture
from luthier_semantic_segmentation.label_maps import of_prediction

LONGEST_SIDE = 1280
"""Of the picture; larger images are shrunk."""
OPACITY = 0.5
FIRST_HUE = 0.6
GOLDEN_RATIO = 0.618034
_PADDING = 8
_SWATCH = 14


def draw(instance: Any, prediction: Any) -> Picture:
    """A PNG of the image at its own size, or smaller, with a legend of the classes that it shows, largest first."""
    image, label_map = images.decode(instance.image), of_prediction(prediction)
    shrink = min(1.0, LONGEST_SIDE / max(label_map.shape))
    height, width = (max(1, round(side * shrink)) for side in label_map.shape)
    image, label_map = images.resize(image, height, width), images.resize_values(label_map, height, width)
    colours = class_colours(len(prediction.classes))
    overlaid = image * (1 - OPACITY) + colours[label_map] * OPACITY
    overlaid[_edges(label_map)] = 255
    shown = sorted((area.pixels, index) for index, area in enumerate(prediction.classes) if area.pixels)[::-1]
    entries = [
        (f"{prediction.classes[index].label}  {prediction.classes[index].share:.1%}", tuple(colours[index].tolist()))
        for _, index in shown
    ]
    return Picture(images.encode_png(_with_legend(overlaid.astype(np.uint8), entries)), "image/png")


def class_colours(count: int) -> np.ndarray:
    """uint8 [count, 3]: bright colours whose hues are apart by the golden ratio, so that any few differ well."""
    hues = [(FIRST_HUE + index * GOLDEN_RATIO) % 1 for index in range(count)]
    colours = np.array([colorsys.hsv_to_rgb(hue, 0.8, 0.95) for hue in hues]).reshape(-1, 3)
    return np.round(colours * 255).astype(np.uint8)


def _edges(label_map: np.ndarray) -> np.ndarray:
    """Where the class differs from that of the pixel to the right or below."""
    edges = np.zeros(label_map.shape, dtype=bool)
    edges[:, :-1] |= label_map[:, 1:] != label_map[:, :-1]
    edges[:-1] |= label_map[1:] != label_map[:-1]
    return edges


def _with_legend(image: np.ndarray, entries: Sequence[tuple[str, tuple[int, ...]]]) -> np.ndarray:
    """The image with lines of coloured squares and texts below it."""
    font = ImageFont.load_default(_SWATCH)
    line = _SWATCH + _PADDING
    height, width = image.shape[:2]
    places, x, y = [], _PADDING, _PADDING
    for text, _ in entries:
        needed = _SWATCH + _PADDING // 2 + round(font.getlength(text)) + 2 * _PADDING
        if x > _PADDING and x + needed > width:
            x, y = _PADDING, y + line
        places.append((x, y))
        x += needed
    canvas = Image.new("RGB", (width, height + y + line), "white")
    canvas.paste(Image.fromarray(image))
    pen = ImageDraw.Draw(canvas)
    for (text, colour), (x, y) in zip(entries, places, strict=True):
        top = height + y
        pen.rectangle((x, top, x + _SWATCH, top + _SWATCH), fill=colour, outline="grey")
        pen.text((x + _SWATCH + _PADDING // 2, top + _SWATCH // 2), text, fill="black", font=font, anchor="lm")
    return np.asarray(canvas)
