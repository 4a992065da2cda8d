"""docs/performance.md shows what docs/performance.json records, and nothing else."""

from __future__ import annotations

import importlib
import json
import sys

import pytest

from support import ROOT

RECORD = ROOT / "docs" / "performance.json"


def test_the_page_is_that_of_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "serving"))
    module = importlib.import_module("report")
    monkeypatch.delitem(sys.modules, "report")
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    assert record["cases"]
    assert RECORD.with_suffix(".md").read_text(encoding="utf-8") == module.page(record)
