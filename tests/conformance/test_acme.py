"""A third party's plugin, installed from its own distribution, under the suite that Luthier publishes."""

from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pyarrow as pa
from acme_regression import RegressionTask
from acme_regression.v1 import regression_pb2 as pb

from luthier import plugins
from luthier.task import DataFile
from luthier.testing import TaskConformance

ROOT = Path(__file__).parents[2]
ACME = ROOT / "tests" / "plugins" / "acme_regression" / "acme_regression"


def rows(seed: int, num_rows: int) -> pa.Table:
    """Rows on a curved surface, in units that need standardising."""
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(num_rows, 3)) * [1, 100, 0.01] + [0, 500, 3]
    y = 20 * np.tanh(x[:, 0]) + 0.1 * (x[:, 1] - 500) + draw.normal(size=num_rows)
    return pa.table({"features": x.tolist(), "target": y})


class TestRegression(TaskConformance):
    task = RegressionTask()
    config = pb.Config(epochs=60)
    invalid_instances = (
        (pb.Instance(features=[1.0]), "features"),
        (pb.Instance(features=[1.0, float("nan"), 1.0]), "features"),
        (pb.Instance(), "features"),
    )
    trivial_score = float(np.std(rows(3, 20)["target"].to_numpy()))
    """The error of the test part's own mean."""

    @classmethod
    def parts(cls) -> Mapping[str, pa.Table]:
        return {"train": rows(1, 120), "validation": rows(2, 20), "test": rows(3, 20)}


def test_it_comes_by_its_own_distribution() -> None:
    (point,) = entry_points(group=plugins.GROUP, name="acme-regression")
    assert point.dist is not None
    loaded = plugins.load().loaded["acme-regression"]
    assert (
        (loaded.distribution, loaded.version) == (point.dist.name, point.dist.version) == ("acme-regression", "1.0.0")
    )


def test_it_is_at_most_150_lines_written_by_hand() -> None:
    written = [path for path in ACME.rglob("*.py") if "_pb2" not in path.name] + list(ACME.rglob("*.proto"))
    lines = {path.relative_to(ACME).as_posix(): len(path.read_text().splitlines()) for path in written}
    assert lines.keys() == {"__init__.py", "training.py", "v1/__init__.py", "v1/regression.proto"}
    assert sum(lines.values()) <= 150, lines


def test_its_name_occurs_nowhere_in_the_product() -> None:
    sources = [path for top in ("server", "plugins", "clients") for path in (ROOT / top).rglob("*.py")]
    assert sources
    assert not [path for path in sources if "acme" in path.read_text().lower()]


def test_it_reads_rows_from_columns_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "prices.csv"
    file.write_text("x1,x2,x3,price\n1,2,3,4.5\n-1,0,1e3,7\n")
    columns = {"features": "x1,x2,x3", "target": "price"}
    table = RegressionTask().read(DataFile(path=file, name="prices.csv", format="csv", columns=columns))
    assert table.to_pylist() == [{"features": [1, 2, 3], "target": 4.5}, {"features": [-1, 0, 1000], "target": 7}]


def test_rows_of_differing_lengths_are_refused() -> None:
    table = pa.table({"features": [[1.0, 2.0], [1.0]], "target": [1.0, 2.0]})
    ((fatal, problem),) = RegressionTask().validate({"train": table})
    assert fatal
    assert (problem.row, problem.field) == (2, "features")
