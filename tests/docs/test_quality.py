"""docs/quality.md shows what docs/quality.json records, and nothing else."""

from __future__ import annotations

import importlib.util
import json

from support import ROOT


def test_the_page_is_that_of_the_record() -> None:
    spec = importlib.util.spec_from_file_location("page", ROOT / "tools" / "quality" / "page.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    record = json.loads((ROOT / "docs" / "quality.json").read_text(encoding="utf-8"))
    assert record["cases"]
    assert (ROOT / "docs" / "quality.md").read_text(encoding="utf-8") == module.page(record)
