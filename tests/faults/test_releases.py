"""A server that finds the database of another release."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from google.longrunning import operations_pb2

import luthier.database
from luthier import fields
from luthier.database import Database
from luthier.tasks.recommendation.v1 import recommendation_pb2 as recommendation
from luthier.v1 import model_pb2
from luthier.v1.operation_pb2 import OperationMetadata
from support import create_dataset, interactions, serving


def test_operations_of_the_release_before_go_on(tmp_path: Path, database_url: str) -> None:
    """The database is taken back to the revision before, with operations in the states that they can be met in."""
    flags = ["--database-url", database_url]
    with serving(tmp_path, *flags) as server:
        create_dataset(server, "shop", "recommendation", {"_": interactions(tmp_path / "shop.csv")})
    config = Config()
    config.set_main_option("script_location", str(Path(luthier.database.__file__).parent / "migrations"))
    database = Database(database_url)
    with database.write() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "0002")
    request = model_pb2.FineTuneRequest(model_id="m", task="recommendation", dataset="datasets/shop")
    quick = recommendation.Config(algorithm=recommendation.ALGORITHM_POPULARITY)
    fields.resolve(quick)
    request.config.Pack(quick)
    rows = [
        {
            "id": f"{state:032x}",
            "kind": OperationMetadata.KIND_FINE_TUNE,
            "state": state,
            "target": "models/m",
            "request": request.SerializeToString(),
            "fingerprint": "",
            "attempt": int(state == OperationMetadata.STATE_RUNNING),
            "faults": 0,
            "lease_until": 0.0,
            "cancel_requested": False,
            "last_sequence": 0,
            "progress": b"",
            "create_time": time.time(),
            "update_time": time.time(),
        }
        for state in (OperationMetadata.STATE_PENDING, OperationMetadata.STATE_RUNNING)
    ]
    with database.write() as connection:
        table = sa.Table("operations", sa.MetaData(), autoload_with=connection)
        assert "pause_requested" not in table.columns
        connection.execute(table.insert(), rows)
    database.close()
    with serving(tmp_path, *flags) as server:
        names = {
            server.result(operations_pb2.Operation(name=f"operations/{row['id']}"), model_pb2.ModelVersion).name
            for row in rows
        }
        assert names == {"models/m/versions/1", "models/m/versions/2"}


def test_a_database_of_a_later_release_is_left_alone(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'luthier.db'}"
    database = Database(url)
    database.migrate()
    with database.write() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    database.close()
    ended = subprocess.run(
        [sys.executable, "-m", "luthier", "--home", str(tmp_path), "--listen", "127.0.0.1:0"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 1
    assert "the database is of a newer release" in ended.stderr
    assert "Traceback" not in ended.stderr
