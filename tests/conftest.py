"""Fixtures of all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import postgres
import s3
import six_models
from luthier.database import Database
from support import ROOT, Server, serving


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--artefacts s3`: all servers that the tests start keep their artefacts in an object store."""
    parser.addoption("--artefacts", choices=("home", "s3"), default="home", help="where servers keep artefacts")


@pytest.fixture(scope="session", autouse=True)
def artefacts(request: pytest.FixtureRequest) -> Iterator[None]:
    """What `--artefacts` says, as servers hear it: from the environment."""
    if request.config.getoption("artefacts") == "home":
        yield
        return
    store: s3.S3 = request.getfixturevalue("object_store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUTHIER_ARTEFACTS", store.new_bucket())
        for name, value in store.environment().items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="session")
def object_store() -> Iterator[s3.S3]:
    """A server that speaks S3."""
    with s3.s3() as running:
        yield running


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests that leave it as usable as they found it."""
    with serving(tmp_path_factory.mktemp("home")) as running:
        yield running


@pytest.fixture(scope="session")
def cluster() -> Iterator[postgres.Cluster]:
    """A PostgreSQL server."""
    programs = postgres.programs()
    if programs is None:
        pytest.skip("PostgreSQL is needed: install Debian's package postgresql")
    with postgres.cluster(programs) as running:
        yield running


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database, of each kind in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'luthier.db'}"
    running: postgres.Cluster = request.getfixturevalue("cluster")
    return running.new_database()


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """One with its tables, of each kind in turn."""
    database = Database(database_url)
    database.migrate()
    yield database
    database.close()


@pytest.fixture(scope="session")
def realdata() -> Path:
    """The folder of real data sets and weights."""
    folder = Path(os.environ.get("LUTHIER_REALDATA", ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip("real data sets are needed: set LUTHIER_REALDATA to the folder that holds data/ and weights/")
    return folder


@pytest.fixture(scope="session")
def tuned_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a model of each task, made once; whoever changes it makes a copy first."""
    pytest.importorskip("torch")
    # Where it is made by hand, for work on these tests.
    if kept := os.environ.get("LUTHIER_TUNED_HOME"):
        return Path(kept)
    home = tmp_path_factory.mktemp("tuned") / "home"
    with serving(home) as server:
        six_models.tune(server, tmp_path_factory.mktemp("sources"))
    return home
