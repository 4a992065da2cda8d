"""Writes `luthier.json`, the dashboard to import into Grafana: `python deploy/grafana/dashboard.py`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("luthier.json")
SOURCE = {"type": "prometheus", "uid": "${source}"}
SERVERS = 'job=~"$job", instance=~"$instance"'
MODELS = f'{SERVERS}, model=~"$model"'
WIDTH, HEIGHT = 8, 8
"""Of a panel, in Grafana's units; a row is 24 wide."""


def rate(name: str, selector: str, by: str) -> str:
    """Growth a second."""
    return f"sum by ({by}) (rate({name}{{{selector}}}[$__rate_interval]))"


def median(histogram: str, selector: str, by: str) -> str:
    """What half of the values are at most."""
    return f"histogram_quantile(0.5, {rate(f'{histogram}_bucket', selector, f'le, {by}')})"


def slowest(histogram: str, selector: str, by: str) -> str:
    """What 99 of 100 values are at most."""
    return f"histogram_quantile(0.99, {rate(f'{histogram}_bucket', selector, f'le, {by}')})"


def mean(histogram: str, selector: str, by: str) -> str:
    """The mean of the values."""
    return f"{rate(f'{histogram}_sum', selector, by)} / {rate(f'{histogram}_count', selector, by)}"


def total(name: str, selector: str, by: str) -> str:
    """A gauge, added up over servers."""
    return f"sum by ({by}) ({name}{{{selector}}})"


def largest(name: str, selector: str, by: str) -> str:
    """A gauge that every server of one database shows alike."""
    return f"max by ({by}) ({name}{{{selector}}})"


def milliseconds(name: str, selector: str, by: str) -> str:
    """The same of a time, as Grafana takes times."""
    return f"1000 * {largest(name, selector, by)}"


BY_VERSION = "model, version"
VERSION = "{{model}}/{{version}}"
FAILED = 'code!="OK"'


def of_versions(query: Callable[..., str], metric: str, *more: str) -> dict[str, str]:
    """A query of a version's metric, by version and what else there is to tell apart."""
    legend = " ".join([VERSION, *(f"{{{{{label}}}}}" for label in more)])
    return {legend: query(metric, MODELS, ", ".join([BY_VERSION, *more]))}


Panel = tuple[str, str, dict[str, str]]
"""Title, unit, and queries by legend."""

PREDICTIONS: list[Panel] = [
    ("Calls", "reqps", of_versions(rate, "luthier_predictions_total", "code")),
    ("Instances a second", "short", of_versions(rate, "luthier_prediction_instances_total")),
    ("Mean rows of a batch", "short", of_versions(mean, "luthier_batch_rows")),
    ("Time of half of the calls", "s", of_versions(median, "luthier_prediction_seconds")),
    ("Time of all but a hundredth", "s", of_versions(slowest, "luthier_prediction_seconds")),
    ("In flight", "short", of_versions(total, "luthier_predictions_in_flight")),
    ("Mean time by stage", "s", of_versions(mean, "luthier_prediction_stage_seconds", "stage")),
    ("Stage of all but a hundredth", "s", of_versions(slowest, "luthier_prediction_stage_seconds", "stage")),
    ("Waiting for a model", "short", of_versions(total, "luthier_queue_waiting")),
]
CALLS: list[Panel] = [
    ("Calls", "reqps", {"{{method}}": rate("luthier_calls_total", SERVERS, "method")}),
    ("Failed", "reqps", {"{{method}} {{code}}": rate("luthier_calls_total", f"{SERVERS}, {FAILED}", "method, code")}),
    ("Time of all but a hundredth", "s", {"{{method}}": slowest("luthier_call_seconds", SERVERS, "method")}),
    ("In flight", "short", {"{{method}}": total("luthier_calls_in_flight", SERVERS, "method")}),
    ("Waiting for a thread", "short", {"{{pool}}": total("luthier_pool_waiting", SERVERS, "pool")}),
    ("Most threads", "short", {"{{pool}}": total("luthier_pool_threads", SERVERS, "pool")}),
]
SERVER: list[Panel] = [
    # Each server counts those of the one database, so the largest is the number there is.
    ("Operations", "short", {"{{state}}": f"max by (state) (luthier_operations{{{SERVERS}}})"}),
    ("Model versions in memory", "short", {"{{instance}}": total("luthier_models_loaded", SERVERS, "instance")}),
    ("The database answers", "bool", {"{{instance}}": total("luthier_database_up", SERVERS, "instance")}),
    ("Resident memory", "bytes", {"{{instance}}": total("process_resident_memory_bytes", SERVERS, "instance")}),
    ("Cores in use", "short", {"{{instance}}": rate("process_cpu_seconds_total", SERVERS, "instance")}),
    ("Open files", "short", {"{{instance}}": total("process_open_fds", SERVERS, "instance")}),
    ("Certificate good for", "s", {"{{instance}}": f"luthier_certificate_expiry_seconds{{{SERVERS}}} - time()"}),
    (
        "Certificates found in the files",
        "short",
        {"{{instance}} {{verdict}}": total("luthier_certificate_changes_total", SERVERS, "instance, verdict")},
    ),
]
LIVE: list[Panel] = [
    ("Distance from the test part", "short", of_versions(largest, "luthier_drift_statistic", "feature")),
    ("Features that moved", "short", of_versions(largest, "luthier_drift_alarm", "feature")),
    ("Predictions of the newest window", "short", of_versions(largest, "luthier_drift_predictions")),
    ("Score by feedback", "short", of_versions(largest, "luthier_live_score", "metric", "bound")),
    ("Worse than at publication", "bool", of_versions(largest, "luthier_live_score_worse")),
    ("Calibration error", "percentunit", of_versions(largest, "luthier_calibration_error")),
    ("Given up", "short", {"{{what}}": rate("luthier_dropped_total", SERVERS, "what")}),
    ("End of the newest window", "dateTimeAsIso", of_versions(milliseconds, "luthier_drift_window_end_seconds")),
]
ROWS = {"Predictions": PREDICTIONS, "Live models": LIVE, "Calls": CALLS, "Server": SERVER}


def panels() -> Iterator[dict[str, Any]]:
    """Rows of panels, from the left to the right and down."""
    y = 0
    for title, row in ROWS.items():
        yield {"type": "row", "title": title, "collapsed": False, "gridPos": {"x": 0, "y": y, "w": 24, "h": 1}}
        y += 1
        for number, (name, unit, queries) in enumerate(row):
            yield {
                "type": "timeseries",
                "title": name,
                "datasource": SOURCE,
                "gridPos": {
                    "x": number * WIDTH % 24,
                    "y": y + number * WIDTH // 24 * HEIGHT,
                    "w": WIDTH,
                    "h": HEIGHT,
                },
                "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
                "targets": [
                    {"refId": chr(ord("A") + i), "datasource": SOURCE, "expr": query, "legendFormat": legend}
                    for i, (legend, query) in enumerate(queries.items())
                ],
            }
        y += -(-len(row) * WIDTH // 24) * HEIGHT


def variable(name: str, query: str) -> dict[str, Any]:
    """A choice at the top of the dashboard, among the values of a label."""
    return {
        "name": name,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def dashboard() -> dict[str, Any]:
    """All of it."""
    return {
        "uid": "luthier",
        "title": "Luthier",
        "schemaVersion": 39,
        "time": {"from": "now-1h", "to": "now"},
        "refresh": "10s",
        "templating": {
            "list": [
                {"name": "source", "label": "Data source", "type": "datasource", "query": "prometheus"},
                variable("job", "label_values(luthier_models_loaded, job)"),
                variable("instance", 'label_values(luthier_models_loaded{job=~"$job"}, instance)'),
                variable("model", f"label_values(luthier_predictions_total{{{SERVERS}}}, model)"),
            ]
        },
        "panels": [{"id": id, **panel} for id, panel in enumerate(panels(), 1)],
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(dashboard(), indent=1) + "\n", encoding="utf-8")
