"""Makes the root file system of deploy/Containerfile without a container engine, and measures it.

    python tools/image_size.py [--keep FOLDER]

Runs the steps of deploy/build.sh that the Containerfile names, on Debian 12 as its build stage is, in a folder of its
own, and prints what weighs there, as `du -sb` counts. Exits with 1 from LIMIT_MB on. Takes some minutes, and needs
root, binutils and python3-venv.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
LIMIT_MB = 500
SHOWN = 14
"""Packages that have a line of their own."""


def steps(containerfile: str) -> list[list[str]]:
    """The calls of deploy/build.sh in a Containerfile, in their order."""
    run = "\n".join(line for line in containerfile.splitlines() if not line.startswith(("#", "COPY")))
    return [found.split() for found in re.findall(r"deploy/build\.sh [a-z]+[^&\\\n]*", run)]


def make(folder: Path) -> Path:
    """Runs the steps within a folder and returns the image's root."""
    for command in steps((ROOT / "deploy" / "Containerfile").read_text(encoding="utf-8")):
        # What a stage has at its root is below the folder here.
        inside = [f"{folder}{word}" if word.startswith("/") else word for word in command]
        # Of Python's and pip's own settings none of this environment's, but where packages come from.
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        subprocess.run(inside, cwd=ROOT, check=True, stdout=sys.stderr, env=kept)
    return folder / "image"


def size(path: Path) -> int:
    """Bytes below a path, as `du -sb` counts them."""
    return int(subprocess.run(["du", "-sb", path], check=True, capture_output=True, text=True).stdout.split()[0])


def weights(image: Path) -> list[tuple[str, float]]:
    """MB by part of the image, the whole last."""
    libraries = image / "opt" / "luthier"
    # A package's libraries lie beside it.
    found: dict[str, int] = {}
    for path in libraries.iterdir():
        if not path.name.endswith(".dist-info"):
            found[path.name.removesuffix(".libs")] = found.get(path.name.removesuffix(".libs"), 0) + size(path)
    largest = sorted(found, key=lambda name: found[name], reverse=True)[:SHOWN]
    whole, installed = size(image), size(libraries)
    rest = installed - sum(found[name] for name in largest)
    lines = [("Debian's packages: the base layer", whole - installed)]
    lines += [(name, found[name]) for name in largest]
    lines += [("other libraries", rest), ("installed prefix, /opt/luthier", installed), ("the image", whole)]
    return [(name, count / 1e6) for name, count in lines]


def main() -> int:
    """Makes, measures, prints."""
    parser = argparse.ArgumentParser(description="Measures the image for serving.")
    parser.add_argument("--keep", type=Path, help="Folder to make it in and to leave it in.")
    keep = parser.parse_args().keep
    with tempfile.TemporaryDirectory() as temporary:
        image = make(keep.absolute() if keep else Path(temporary))
        lines = weights(image)
    print("| part | MB |\n|---|---|")
    for name, megabytes in lines:
        print(f"| {name} | {megabytes:.1f} |")
    return int(lines[-1][1] >= LIMIT_MB)


if __name__ == "__main__":
    sys.exit(main())
