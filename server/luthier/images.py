"""Images from bytes: JPEG, PNG, WebP and BMP to arrays of RGB, and back to PNG. The same code serves and trains.

The content says what an image is, not its name. Size and pixels are checked on the header, before anything is decoded.
What a viewer shows is what comes out: the EXIF orientation is applied, transparency is laid on white, palettes and
16-bit greys become 8-bit RGB.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from PIL import Image, ImageOps

# Pillow would warn of many pixels and refuse more; here each header is checked against a limit of our own. To leave the
# warning out by a filter would not do: threads share those.
Image.MAX_IMAGE_PIXELS = None

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
MAX_BYTES = 16 * 2**20
"""The largest file taken, which is also the largest request that a server takes by default."""
MAX_PIXELS = 50_000_000
"""The most pixels taken: 150 MB of RGB, twice what cameras of today make."""

_ENDINGS = {
    "JPEG": ("jpg", "jpeg", "jpe", "jfif"),
    "PNG": ("png",),
    "WEBP": ("webp",),
    "BMP": ("bmp", "dib"),
}
ENDINGS = tuple(ending for endings in _ENDINGS.values() for ending in endings)
"""Endings of the names of image files, small and without the dot."""

GREY_MODES = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L")
"""Modes of `Header` without colour."""

_STRIP = 2**20
"""Pixels that are turned to RGB at a time."""
_ORIENTATION = 0x0112
_TURNED = (5, 6, 7, 8)
"""EXIF orientations that swap width and height."""


class ImageError(ValueError):
    """Bytes that are no image which is taken; the message says why, for the user."""


@dataclass(frozen=True)
class Header:
    """What an image says of itself."""

    format: str
    """One of FORMATS."""
    width: int
    """As shown, after the EXIF orientation."""
    height: int
    mode: str
    """Pillow's name of the pixels' form, for instance `L` where it is grey."""


def inspect(data: bytes) -> Header:
    """Reads the header alone; raises ImageError."""
    with _opened(data) as image:
        turned = image.getexif().get(_ORIENTATION) in _TURNED
        width, height = image.size[::-1] if turned else image.size
        # Photographs of phones often hold a second picture behind the first, and are JPEG nevertheless.
        return Header("JPEG" if image.format == "MPO" else str(image.format), width, height, image.mode)


def decode(data: bytes) -> np.ndarray:
    """Returns uint8 [height, width, 3], RGB as shown; raises ImageError.

    With the result that takes up to 7 bytes a pixel, 10 where an image has to be turned, 16 for WebP.
    """
    with _opened(data) as image:
        ImageOps.exif_transpose(image, in_place=True)
        width, height = image.size
        pixels = np.empty((height, width, 3), dtype=np.uint8)
        # In strips, for each form on the way to RGB is a copy.
        rows = max(1, _STRIP // width)
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            pixels[top:bottom] = np.asarray(_rgb(image.crop((0, top, width, bottom))))
        return pixels


def decode_to(data: bytes, height: int, width: int) -> np.ndarray:
    """The same as `resize(decode(data), height, width)`, without the copies of the whole image between them."""
    with _opened(data) as image:
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode == "RGB":
            return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    return resize(decode(data), height, width)


def thumbnail(data: bytes, side: int) -> np.ndarray:
    """The image in small, RGB, its longer side at most so many pixels; a JPEG is not even decoded in full."""
    with _opened(data) as image:
        if image.format == "JPEG":
            image.draft("RGB", (side, side))
        small = _rgb(image)
        small.thumbnail((side, side), Image.Resampling.BOX)
        return np.asarray(small)


def decode_values(data: bytes) -> np.ndarray:
    """Returns the numbers that an image stores, as a mask means them: of a palette the indices, of a grey the levels.

    uint8 or uint16 [height, width]; [height, width, 3] where it stores colours. Raises ImageError.
    """
    with _opened(data) as image:
        shown = ImageOps.exif_transpose(image)
        if shown.mode.startswith("I"):
            return np.asarray(shown).astype(np.uint16)
        if shown.mode == "1":
            shown = shown.convert("L")
        elif shown.mode not in ("L", "P"):
            shown = shown.getchannel(0) if shown.mode == "LA" else shown.convert("RGB")
        return np.asarray(shown)


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes uint8 [h, w, 3] or [h, w] to [height, width, …]: bilinear, with antialiasing where it shrinks."""
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def resize_values(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes a mask, uint8 [h, w], to the nearest value of each place."""
    if values.shape == (height, width):
        return values
    return np.asarray(Image.fromarray(values).resize((width, height), Image.Resampling.NEAREST))


def encode_png(image: np.ndarray) -> bytes:
    """A PNG of uint8 [height, width] (grey) or [height, width, 3] (RGB)."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def misnamed(name: str, header: Header) -> str:
    """What is odd about a file's name for its content; empty where nothing is."""
    ending = PurePosixPath(name).suffix[1:].lower()
    if ending in _ENDINGS[header.format]:
        return ""
    return f"the content is {header.format}, whatever the name ends in; it is read as what it is"


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """An image whose header has been read and is within the limits; what fails inside becomes ImageError."""
    if len(data) > MAX_BYTES:
        raise ImageError(f"the image has {len(data)} bytes; at most {MAX_BYTES} are taken")
    if not data:
        raise ImageError("there is no image")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Exception as error:  # Decoders raise whatever strange bytes make them trip over.
        raise ImageError(f"the bytes are none of {', '.join(FORMATS)}, or damaged at the start") from error
    with image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ImageError(f"the image has {width}x{height} pixels; at most {MAX_PIXELS} are taken")
        if not width * height:
            raise ImageError(f"the image has {width}x{height} pixels")
        try:
            yield image
        except Exception as error:
            raise ImageError(f"the {image.format} is damaged or cut short: {error}") from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):
        # Pillow would clip 16 bits to 8, and most of such an image would be white.
        return Image.fromarray((np.asarray(image).astype(np.uint32) // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")
