"""Dashboard, alerts and documents name metrics that a server really has, and the documents name them all."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import grpc
import pytest
import yaml

from certificates import Authority
from luthier.database import Database, drift_windows
from luthier.tasks.recommendation.v1 import recommendation_pb2 as recommendation
from luthier.tasks.recommendation.v1 import recommendation_pb2_grpc as recommendation_grpc
from luthier.v1.monitoring_pb2 import Calibration, Drift, FeatureDrift, LiveScore
from scrapes import Scrape, names, scrape
from support import ROOT, create_dataset, fine_tune, interactions, serving

DEPLOY = ROOT / "deploy"
POPULARITY = recommendation.Config(algorithm=recommendation.ALGORITHM_POPULARITY)
ADDED = {"up", "job", "instance", "namespace", "pod"}
"""What Prometheus adds to what it scrapes, on Kubernetes too."""
WORDS = {
    "sum",
    "by",
    "or",
    "rate",
    "increase",
    "histogram_quantile",
    "max",
    "min_over_time",
    "time",
    "offset",
    "h",
    "label_values",
}
"""Of PromQL and of Grafana's variables."""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Scrape:
    """A scrape of a server that has predicted, and shows a certificate."""
    home = tmp_path_factory.mktemp("home")
    authority = Authority()
    certificate, key = authority.server().write(home, "server")
    flags = ("--metrics-listen", "127.0.0.1:0", "--tls-certificate", str(certificate), "--tls-key", str(key))
    with serving(home, *flags, credentials=grpc.ssl_channel_credentials(authority.certificate)) as server:
        create_dataset(server, "shop", "recommendation", {"_": interactions(home / "shop.csv")})
        fine_tune(server, "shop", "recommendation", "shop", POPULARITY)
        request = recommendation.RecommendRequest(model="shop", instances=[recommendation.Instance(user="u1")])
        server.stub(recommendation_grpc.RecommendationServiceStub).Recommend(request)
        watched(home)
        return scrape(server)


def watched(home: Path) -> None:
    """A window of the model in which there is everything that a window may have."""
    window = Drift(
        features=[FeatureDrift(name="answered")],
        calibration=Calibration(expected_error=0.1),
        live=LiveScore(metric="accuracy"),
    )
    row = {"model": "shop", "number": 1, "end_time": 0.0, "verdict": Drift.VERDICT_STEADY}
    database = Database(f"sqlite:///{home / 'luthier.db'}")
    with database.write() as connection:
        connection.execute(drift_windows.insert().values(record=window.SerializeToString(), **row))
    database.close()


def words(expression: str) -> set[str]:
    """The names of series and labels in an expression of PromQL."""
    bare = re.sub(r'"[^"]*"|\[[^\]]*\]', "", expression)
    return set(re.findall(r"[a-zA-Z_]+", bare)) - WORDS


def dashboard() -> ModuleType:
    spec = importlib.util.spec_from_file_location("dashboard", DEPLOY / "grafana" / "dashboard.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def expressions() -> Iterator[str]:
    """All that the dashboard, the alerts and the autoscaler ask Prometheus."""
    board = json.loads((DEPLOY / "grafana" / "luthier.json").read_text(encoding="utf-8"))
    yield from (target["expr"] for panel in board["panels"] for target in panel.get("targets", ()))
    yield from (v["query"]["query"] for v in board["templating"]["list"] if v["type"] == "query")
    for group in yaml.safe_load((DEPLOY / "alerts.yml").read_text(encoding="utf-8"))["groups"]:
        yield from (rule["expr"] for rule in group["rules"])
    adapter = yaml.safe_load((DEPLOY / "prometheus-adapter.yml").read_text(encoding="utf-8"))
    [rule] = adapter["rules"]["custom"]
    yield rule["seriesQuery"]
    # As the adapter fills it in.
    filled = {"Series": rule["seriesQuery"].partition("{")[0], "LabelMatchers": 'namespace="ml"', "GroupBy": "pod"}
    yield re.sub(r"<<\.(\w+)>>", lambda found: filled[found[1]], rule["metricsQuery"])


def test_what_is_asked_for_is_there(found: Scrape) -> None:
    there = {name for name, _ in found} | {label for _, labels in found for label, _ in labels} | ADDED
    asked = {word for expression in expressions() for word in words(expression)}
    assert asked - there == set()
    assert {"luthier_predictions_total", "luthier_prediction_stage_seconds_bucket", "version", "stage"} <= asked


def test_all_that_is_there_is_documented_and_no_more(found: Scrape) -> None:
    rows = re.findall(r"^\| `(luthier_\w+)` \|([^|]*)\|", (ROOT / "docs" / "operations.md").read_text("utf-8"), re.M)
    documented = {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in rows}
    assert documented.keys() == names(found)
    for name, labels in documented.items():
        series = [dict(of) for series, of in found if series in (name, f"{name}_bucket")]
        assert {label for of in series for label in of} - {"le"} == labels, name


def test_every_metric_is_on_the_dashboard(found: Scrape) -> None:
    asked = {word for expression in expressions() for word in words(expression)}
    shown = {re.sub("_(bucket|sum|count)$", "", word) for word in asked}
    assert names(found) <= shown


def test_the_dashboard_is_what_its_script_makes() -> None:
    made = json.loads((DEPLOY / "grafana" / "luthier.json").read_text(encoding="utf-8"))
    assert made == dashboard().dashboard(), "run `python deploy/grafana/dashboard.py`"
    places = [tuple(panel["gridPos"][key] for key in "xywh") for panel in made["panels"]]
    assert len({place[:2] for place in places}) == len(places)
    assert all(x + w <= 24 for x, _, w, _ in places)


def test_prometheus_is_pointed_at_the_alerts() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text(encoding="utf-8"))
    assert [(DEPLOY / file).exists() for file in config["rule_files"]] == [True]
    [job] = config["scrape_configs"]
    assert job["job_name"] == "luthier"
