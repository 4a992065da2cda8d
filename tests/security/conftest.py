"""A home with a model of each task, made once for all tests of the folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import six_models
from support import serving


@pytest.fixture(scope="session")
def tuned_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home itself; whoever changes it makes a copy first."""
    pytest.importorskip("torch")
    # Where it is made by hand, for work on these tests.
    if kept := os.environ.get("LUTHIER_TUNED_HOME"):
        return Path(kept)
    home = tmp_path_factory.mktemp("tuned") / "home"
    with serving(home) as server:
        six_models.tune(server, tmp_path_factory.mktemp("sources"))
    return home


@pytest.fixture
def home(tuned_home: Path, tmp_path: Path) -> Path:
    """A copy to do harm to."""
    return Path(shutil.copytree(tuned_home, tmp_path / "home"))
