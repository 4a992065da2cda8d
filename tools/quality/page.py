"""`docs/quality.md`, made from `docs/quality.json`: what was measured once is shown as often as one likes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

TEMPLATE = Path(__file__).with_name("page.md.j2")


def page(record: dict[str, Any]) -> str:
    """The page for what was recorded."""
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True, autoescape=False)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(record)
