"""Images from bytes, good and bad: whatever comes, it is an image as people see it or an error that says why not."""

from __future__ import annotations

import contextlib
import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from luthier import images

SCENE = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3) * 3
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK")

_DECODE = """
import sys
from luthier import images

def peak():
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) // 1024

before = peak()
try:
    images.decode(open(sys.argv[1], "rb").read())
except images.ImageError:
    pass
print(peak() - before)
"""
"""Prints by how many megabytes memory grew, at its peak."""


def saved(image: Image.Image, format: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def png(width: int, height: int, rows: int, colour_type: int = 2, extra: bytes = b"") -> bytes:
    """A PNG that says it is so large and holds so many rows of one colour."""
    channels = {2: 3, 6: 4}[colour_type]
    pack = zlib.compressobj(9)
    pixels = b"".join(pack.compress(b"\0" + b"\x80" * (width * channels)) for _ in range(rows)) + pack.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


# What is seen is what comes out.


@pytest.mark.parametrize("format", images.FORMATS)
def test_each_format_is_told_by_its_content(format: str) -> None:
    data = saved(Image.fromarray(SCENE), format, **({"lossless": True} if format == "WEBP" else {}))
    assert images.inspect(data) == images.Header(format, 4, 6, "RGB")
    decoded = images.decode(data)
    assert decoded.dtype == np.uint8
    assert decoded.shape == (6, 4, 3)
    if format != "JPEG":
        assert np.array_equal(decoded, SCENE)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientations_are_applied(orientation: int) -> None:
    """The pixels that a camera stores for each orientation, undone: what is shown is the same scene."""
    stored = {
        1: SCENE,
        2: SCENE[:, ::-1],
        3: SCENE[::-1, ::-1],
        4: SCENE[::-1],
        5: SCENE.transpose(1, 0, 2),
        6: np.rot90(SCENE, 1),
        7: np.rot90(SCENE, 2).transpose(1, 0, 2),
        8: np.rot90(SCENE, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(Image.fromarray(np.ascontiguousarray(stored)), "PNG", exif=exif)
    assert np.array_equal(images.decode(data), SCENE)
    header = images.inspect(data)
    assert (header.height, header.width) == SCENE.shape[:2]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_damaged_exif_block_does_not_matter() -> None:
    for exif in (b"Exif\0\0garbage", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12"):
        data = saved(Image.new("RGB", (5, 3)), "JPEG", exif=exif)
        assert images.decode(data).shape == (3, 5, 3)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_becomes_rgb(mode: str) -> None:
    """A mid grey, whatever it is stored as."""
    value = {"1": 1, "L": 128, "LA": (128, 255), "P": 0, "RGB": (128,) * 3, "RGBA": (128, 128, 128, 255)}
    value |= {"I;16": 128 * 257, "CMYK": (0, 0, 0, 127)}
    image = Image.new(mode, (3, 2), value[mode])
    if mode == "P":
        image.putpalette([128, 128, 128])
    data = saved(image, "JPEG" if mode == "CMYK" else "PNG", **({"quality": 100} if mode == "CMYK" else {}))
    decoded = images.decode(data)
    assert decoded.shape == (2, 3, 3)
    assert np.abs(decoded.astype(int) - (255 if mode == "1" else 128)).max() <= 1


def test_transparency_is_laid_on_white() -> None:
    half = Image.new("RGBA", (2, 2), (0, 0, 0, 128))
    assert np.all(images.decode(saved(half, "PNG")) == 127)
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    assert images.decode(saved(palette, "PNG", transparency=1)).tolist() == [[[255] * 3] * 2] * 2
    assert images.decode(saved(palette, "PNG", transparency=0)).tolist() == [[[0, 0, 255]] * 2] * 2


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 8).astype(np.uint16).reshape(2, 4)
    decoded = images.decode(saved(Image.fromarray(ramp), "PNG"))
    assert np.array_equal(decoded[..., 0], ramp // 257)


def test_a_photograph_of_a_phone_with_a_second_picture_is_a_jpeg() -> None:
    first, second = Image.new("RGB", (8, 4), "red"), Image.new("RGB", (8, 4), "blue")
    data = saved(first, "MPO", save_all=True, append_images=[second])
    header = images.inspect(data)
    assert header.format == "JPEG"
    assert images.misnamed("IMG_1.JPG", header) == ""
    assert images.decode(data)[0, 0].tolist() == [254, 0, 0]


def test_the_first_picture_of_an_animation_is_taken() -> None:
    frames = [Image.new("RGB", (8, 4), colour) for colour in ("red", "blue")]
    for format in ("PNG", "WEBP"):
        data = saved(frames[0], format, save_all=True, append_images=frames[1:], lossless=True)
        assert images.decode(data)[0, 0].tolist() == [255, 0, 0]


def test_large_images_are_converted_in_strips_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    layer = Image.fromarray(random.integers(0, 256, (37, 11, 4), dtype=np.uint8))
    whole = images.decode(saved(layer, "PNG"))
    monkeypatch.setattr(images, "_STRIP", 50)
    assert np.array_equal(images.decode(saved(layer, "PNG")), whole)


def test_the_numbers_of_a_mask_are_kept() -> None:
    indices = np.array([[0, 1, 2], [2, 1, 0]], dtype=np.uint8)
    palette = Image.fromarray(indices, "P")
    palette.putpalette([9, 9, 9, 80, 0, 0, 0, 80, 0])
    assert np.array_equal(images.decode_values(saved(palette, "PNG")), indices)
    deep = (indices.astype(np.uint16) + 1) * 300
    assert np.array_equal(images.decode_values(saved(Image.fromarray(deep), "PNG")), deep)


# What is none is refused, with the reason.


@pytest.mark.parametrize("format", images.FORMATS)
def test_an_image_cut_short_is_refused(format: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    data = saved(noise, format)
    for length in (0, 1, 10, len(data) // 3, len(data) * 2 // 3):
        with pytest.raises(images.ImageError):
            images.decode(data[:length])


@pytest.mark.parametrize(
    "data", [b"", b"GIF89a\1\0\1\0\0\0\0;", b"%PDF-1.7", b"<svg/>", b"\0" * 100, b"II*\0" + b"\0" * 40]
)
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(images.ImageError, match="no image" if not data else "none of JPEG, PNG, WEBP, BMP"):
        images.decode(data)


@pytest.mark.parametrize(("width", "height"), [(0, 5), (5, 0), (0, 0)])
def test_no_pixels_are_no_image(width: int, height: int) -> None:
    with pytest.raises(images.ImageError):
        images.decode(png(width, height, 0))
    bitmap = bytearray(saved(Image.new("RGB", (4, 4)), "BMP"))
    bitmap[18:26] = struct.pack("<ii", width, height)
    with pytest.raises(images.ImageError):
        images.decode(bytes(bitmap))


def test_random_damage_is_an_image_or_an_error() -> None:
    random = np.random.default_rng(1)
    for format in images.FORMATS:
        data = bytearray(saved(Image.fromarray(SCENE.repeat(5, 0).repeat(5, 1)), format))
        for _ in range(200):
            broken = data.copy()
            for place in random.integers(0, len(data), 4):
                broken[place] = random.integers(0, 256)
            with contextlib.suppress(images.ImageError):
                assert images.decode(bytes(broken)).shape[2] == 3


def test_too_many_bytes_are_refused_unread() -> None:
    with pytest.raises(images.ImageError, match="16777217 bytes; at most 16777216"):
        images.decode(b"\xff" * (images.MAX_BYTES + 1))


@pytest.mark.parametrize(("width", "height"), [(10_000, 5_001), (60_000, 60_000)])
def test_too_many_pixels_are_refused_before_they_are_decoded(width: int, height: int) -> None:
    with pytest.raises(images.ImageError, match=f"{width}x{height} pixels; at most 50000000 are taken"):
        images.inspect(png(width, height, 1))


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of the memory from /proc")
@pytest.mark.parametrize(
    ("bomb", "megabytes"),
    [
        (png(50_000, 50_000, 20), 10),
        (png(9_000, 5_600, 1), 420),
        (png(3_000, 3_000, 3_000, colour_type=6), 90),
        (png(8, 8, 8, extra=chunk(b"zTXt", b"a\0\0" + zlib.compress(b"x" * 200_000_000, 1))), 80),
    ],
    ids=["header", "cut-short", "solid", "text"],
)
def test_bombs_stay_small(bomb: bytes, megabytes: int, tmp_path: Path) -> None:
    """A file of less than a megabyte cannot take more memory than the largest image that is taken, 8 bytes a pixel."""
    assert len(bomb) < 2**20
    file = tmp_path / "bomb"
    file.write_bytes(bomb)
    done = subprocess.run([sys.executable, "-c", _DECODE, str(file)], capture_output=True, text=True, check=True)
    assert int(done.stdout) <= megabytes


# Names and sizes.


def test_a_wrong_name_is_told() -> None:
    header = images.inspect(saved(Image.new("RGB", (2, 2)), "PNG"))
    assert images.misnamed("a/b.PNG", header) == ""
    assert images.misnamed("a/b.jpg", header) == (
        "the content is PNG, whatever the name ends in; it is read as what it is"
    )


def test_resizing_keeps_what_has_the_size_and_smooths_what_shrinks() -> None:
    assert images.resize(SCENE, 6, 4) is SCENE
    stripes = np.tile(np.array([0, 255], dtype=np.uint8), (8, 32))
    assert np.abs(images.resize(stripes, 8, 8).astype(int)[:, 1:-1] - 127).max() <= 1
    values = np.array([[1, 9]], dtype=np.uint8)
    assert images.resize_values(values, 2, 4).tolist() == [[1, 1, 9, 9]] * 2


@pytest.mark.parametrize("size", [(224, 160), (5, 7), (480, 640)])
@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("mode", MODES)
def test_decoding_to_a_size_is_decoding_and_resizing(mode: str, orientation: int, size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 48, 3), np.uint8).repeat(10, 0).repeat(10, 1)
    image = Image.fromarray(noise).convert("L").convert("I;16") if mode == "I;16" else Image.fromarray(noise)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(image if mode == "I;16" else image.convert(mode), "JPEG" if mode == "CMYK" else "PNG", exif=exif)
    assert np.array_equal(images.decode_to(data, *size), images.resize(images.decode(data), *size))


def test_decoding_to_a_size_refuses_what_decoding_refuses() -> None:
    whole = saved(Image.effect_noise((90, 70), 100).convert("RGB"), "PNG")
    for data in (b"", b"text", whole[: len(whole) // 2]):
        with pytest.raises(images.ImageError) as plain:
            images.decode(data)
        with pytest.raises(images.ImageError) as sized:
            images.decode_to(data, 3, 3)
        assert str(sized.value) == str(plain.value)
