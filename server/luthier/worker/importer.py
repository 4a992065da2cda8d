"""An importer: the process that imports a training framework to read a checkpoint. It knows no database."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from luthier import logs
from luthier.toolkit.imports import import_checkpoint
from luthier.worker import process


def main(directory: Path, pipe: int) -> int:
    """Writes the base that `spec.json` asks for into `base`, and what there is to say about it into `outcome.json`."""
    spec = json.loads((directory / "spec.json").read_text(encoding="utf-8"))
    process.die_with_parent(spec["parent"])
    logs.configure()
    os.close(pipe)
    try:
        imported = import_checkpoint(
            spec["id"],
            spec["architecture"],
            Path(spec["weights"]),
            {path: Path(source) for path, source in spec["files"].items()},
            {key: tuple(values) for key, values in spec["preprocessing"].items()},
            directory / "base",
        )
    except Exception as error:  # The worker passes on whatever it is.
        status = process.status_of(error, "the import")
        (directory / "error.bin").write_bytes(status.SerializeToString())
        return 1
    (directory / "outcome.json").write_text(json.dumps(asdict(imported)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
