"""What the modules of the corpus have in common."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

Files = Mapping[str, str | bytes]


@dataclass(frozen=True)
class Bad:
    """A bad data set."""

    id: str
    task: str
    files: Files
    """By name. More than one without roles are a folder."""
    found: Mapping[str, str]
    """Place of each problem, `file:row N:field`, and words of its message. No other problem may be told."""
    roles: Mapping[str, str] = field(default_factory=dict)
    """File of each role, where they have roles."""
    columns: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    format: str = ""

    def write(self, folder: Path) -> Path | dict[str, Path]:
        """Writes the files; returns what to create a data set of."""
        root = folder / "data"
        for name, content in self.files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        if self.roles:
            return {role: root / name for role, name in self.roles.items()}
        return root if len(self.files) > 1 else root / next(iter(self.files))


def picture(kind: str = "PNG", width: int = 16, height: int = 12, shade: int = 90) -> bytes:
    """An image file of one colour."""
    stream = io.BytesIO()
    Image.new("RGB", (width, height), (shade, 120, 30)).save(stream, kind)
    return stream.getvalue()


def mask(*rows: str, palette: bool = False) -> bytes:
    """A PNG of one byte a pixel, whose rows are digits."""
    image = Image.new("P" if palette else "L", (len(rows[0]), len(rows)))
    image.putdata([int(digit) for row in rows for digit in row])
    if palette:
        image.putpalette([shade for index in range(10) for shade in (index * 20, 0, 0)])
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def bomb(width: int = 60_000, height: int = 60_000) -> bytes:
    """A PNG of a few bytes whose header promises 3.6 thousand million pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    )
