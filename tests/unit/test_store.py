"""The folders of attempts at an operation."""

from __future__ import annotations

from pathlib import Path

from luthier.store import Store


def test_an_attempt_takes_over_from_earlier_ones_and_leaves_later_ones_alone(tmp_path: Path) -> None:
    """A worker may sleep between taking an operation up and making its folder, past its lease."""
    store = Store(tmp_path)
    second = store.work("a", 2)
    (second / "run").mkdir()
    late = store.work("a", 1)
    assert (second / "run").is_dir()
    assert not any(late.iterdir())
    third = store.work("a", 3)
    assert (third / "run").is_dir()
    assert [path.name for path in (tmp_path / "work").iterdir()] == [third.name]
