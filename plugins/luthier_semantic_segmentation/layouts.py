"""Reads an archive in the layout that the user states, or in the one that its files show."""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING

from luthier.archives import Archive, open_archive
from luthier.task import DataFile
from luthier_semantic_segmentation import coco, mask_files, rows

if TYPE_CHECKING:
    import pyarrow as pa

LAYOUTS = {"masks": mask_files, "coco": coco}
"""By the name of the format; of an archive in which both are found, the first is taken."""


def read(file: DataFile) -> dict[str, pa.Table]:
    """Tables of examples by part, of which the empty one is still to be split; raises InvalidData."""
    with open_archive(file) as archive:
        layout = LAYOUTS[file.format] if file.format else _shown(archive)
        return rows.tables(layout.read(file, archive))


def _shown(archive: Archive) -> ModuleType:
    for layout in LAYOUTS.values():
        if layout.is_one(archive):
            return layout
    raise archive.invalid(
        "",
        "the layout is not known: there are neither masks beside images, such as images/a.jpg and masks/a.png or a.jpg "
        "and a_mask.png, nor a JSON file of COCO",
    )
