"""A prediction as a picture: the image, and under it a bar for each class."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from luthier import images
from luthier.task import Picture

WIDTH, MAX_HEIGHT = 480, 640
"""Of the image within the picture, in pixels."""
MARGIN, ROW, FONT = 12, 28, 16
SHOWN = 10
INK, BAR, GROUND = "#1d1d1f", "#9ec5e8", "white"


def draw(image: bytes, prediction: Any) -> Picture:
    """Draws at most ten classes, best first; the length of a bar is the probability."""
    decoded = images.decode(image)
    height, width = decoded.shape[:2]
    scale = min(WIDTH / width, MAX_HEIGHT / height)
    shown = images.resize(decoded, max(1, round(height * scale)), max(1, round(width * scale)))
    scores = prediction.top[:SHOWN]
    canvas = Image.new("RGB", (WIDTH + 2 * MARGIN, shown.shape[0] + 3 * MARGIN + ROW * len(scores)), GROUND)
    canvas.paste(Image.fromarray(shown), (MARGIN + (WIDTH - shown.shape[1]) // 2, MARGIN))
    pen = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(FONT)
    for row, score in enumerate(scores):
        top = shown.shape[0] + 2 * MARGIN + ROW * row
        pen.rectangle((MARGIN, top, MARGIN + round(WIDTH * score.score), top + ROW - 4), fill=BAR)
        percent = f"{score.score:.1%}"
        room = WIDTH - 3 * MARGIN - pen.textlength(percent, font)
        middle = top + (ROW - 4) // 2
        pen.text((MARGIN + 8, middle), _fitting(score.label, room, pen, font), INK, font, anchor="lm")
        pen.text((MARGIN + WIDTH - 8, middle), percent, INK, font, anchor="rm")
    return Picture(images.encode_png(np.asarray(canvas)), "image/png")


def _fitting(label: str, room: float, pen: ImageDraw.ImageDraw, font: Any) -> str:
    """A label in one line, cut at the end where it is too long."""
    line = cut = " ".join(label.split())
    while pen.textlength(cut, font) > room:
        line = line[:-1]
        cut = f"{line}…"
    return cut
