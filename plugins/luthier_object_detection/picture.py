"""A prediction as a picture: boxes with their classes and scores on the image."""

from __future__ import annotations

import io
import zlib
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from luthier import images
from luthier.task import Picture

COLOURS = (
    "#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080",
    "#9a6324", "#800000", "#808000", "#000075", "#f032e6", "#469990",
)  # fmt: skip
"""Easily told apart, and dark enough for white letters (after Sasha Trubetskoy's list)."""
MOST_PIXELS = 1600
"""The longer side of a picture; larger images are made smaller."""


def draw(image: bytes, prediction: Any, least: float) -> Picture:
    """Draws the detections with a score of `least` and more, the most certain ones on top."""
    pixels = images.decode(image)
    height, width = pixels.shape[:2]
    scale = min(1.0, MOST_PIXELS / max(height, width))
    shown = Image.fromarray(images.resize(pixels, max(1, round(height * scale)), max(1, round(width * scale))))
    draw = ImageDraw.Draw(shown)
    side = max(shown.size)
    font = ImageFont.load_default(max(10, side // 50))
    line = max(1, side // 300)
    for detection in reversed([found for found in prediction.detections if found.score >= least]):
        box = detection.box
        corners = np.array([box.x_min, box.y_min, box.x_max, box.y_max]) * scale
        colour = COLOURS[zlib.crc32(detection.label.encode()) % len(COLOURS)]
        draw.rectangle(corners.tolist(), outline=colour, width=line)
        text = f"{detection.label} {detection.score:.2f}"
        _tag(draw, corners[0], corners[1], text, font, colour)
    stream = io.BytesIO()
    shown.save(stream, "PNG")
    return Picture(stream.getvalue(), "image/png")


def _tag(draw: ImageDraw.ImageDraw, left: float, top: float, text: str, font: Any, colour: str) -> None:
    """White letters on the colour, above the box where there is room, else within it."""
    _, _, width, height = draw.textbbox((0, 0), text, font=font)
    y = top - height - 2 if top >= height + 2 else top
    draw.rectangle((left, y, left + width + 4, y + height + 2), fill=colour)
    draw.text((left + 2, y), text, fill="white", font=font)
