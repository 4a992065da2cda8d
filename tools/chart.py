"""Writes what the chart says of its values: the table of README.md, and values.schema.json.

    .venv/bin/python tools/chart.py [--check]

They are made from values.yaml and the settings of the server. `--check` writes nothing and exits with 1 where a file is
not what it would write.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from luthier.settings import Settings

CHART = Path(__file__).parent.parent / "deploy" / "helm" / "luthier"

OWN = {
    "home",
    "listen",
    "insecure",
    "database_url",
    "artefacts",
    "tls_certificate",
    "tls_key",
    "tls_client_ca",
    "tokens",
    "policy",
    "jwt_keys",
    "jwt_audience",
    "jwt_issuer",
    "serve_memory_mb",
    "drain_s",
    "metrics_listen",
    "health_listen",
    "http_listen",
    "http_origins",
    "processes",
}
"""Settings that the chart makes of values of its own. Of processes a pod has one: more pods do the same."""

OF_WORKERS = {"trainings", "jobs", "train_device"}
"""Settings that servers and workers do not share."""

BOUNDS: dict[str, dict[str, Any]] = {
    "replicas": {"minimum": 1},
    "image.pullPolicy": {"enum": ["Always", "IfNotPresent", "Never"]},
    "serveMemoryMb": {"minimum": 256},
    "memoryHeadroomMb": {"minimum": 256},
    "cpu": {"type": ["string", "number"]},
    "drainSeconds": {"type": "number", "minimum": 0},
    "preStopSeconds": {"minimum": 1},
    "artefacts.url": {"pattern": "^(s3://[^/]+(/[^/]+)*/?)?$"},
    "tokens.jwt.keys": {"pattern": "^(https://.+)?$"},
    "service.type": {"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
    "service.port": {"minimum": 1, "maximum": 65535},
    "autoscaling.kind": {"enum": ["hpa", "keda"]},
    "autoscaling.min": {"minimum": 1},
    "autoscaling.max": {"minimum": 1},
    "autoscaling.queueLength": {"type": "number", "exclusiveMinimum": 0},
    "autoscaling.stabilizationSeconds": {"minimum": 0, "maximum": 3600},
    "podDisruptionBudget.maxUnavailable": {"type": ["integer", "string"]},
    "networkPolicy.callers": {"items": {"type": "object"}},
    "networkPolicy.scrapers": {"items": {"type": "object"}},
    "networkPolicy.egressPorts": {"items": {"type": "integer", "minimum": 1, "maximum": 65535}},
    "http.origins": {"items": {"type": "string"}},
    "imagePullSecrets": {"items": {"type": "object", "required": ["name"]}},
    "worker.replicas": {"minimum": 1},
    "worker.cpu": {"type": ["string", "number"]},
    "worker.gpu.count": {"minimum": 0},
}
"""What a value's default does not say of it."""


def rows() -> Iterator[tuple[str, str, str]]:
    """Name, default and description of each value, in the file's order."""
    path: list[str] = []
    comment: list[str] = []
    for line in (CHART / "values.yaml").read_text(encoding="utf-8").splitlines():
        if found := re.fullmatch(r" *# (.*)", line):
            comment.append(found[1])
        elif found := re.fullmatch(r"( *)(\w+):(?: (.+))?", line):
            path = [*path[: len(found[1]) // 2], found[2]]
            if found[3]:
                if not comment:
                    raise ValueError(f"{'.'.join(path)} of values.yaml has no line above it that says what it is")
                yield ".".join(path), found[3], " ".join(comment)
            comment = []
        elif line:
            raise ValueError(f"values.yaml: {line}")
        else:
            comment = []


def table() -> str:
    """The values as a table of README."""
    lines = ["| value | default | |", "|---|---|---|"]
    lines += [f"| `{name}` | `{default}` | {text} |" for name, default, text in rows()]
    return "\n".join(lines)


_KEPT = ("type", "description", "minimum", "exclusiveMinimum", "maximum", "items")
"""What a schema of settings says that helm needs."""


def settings(left_out: set[str]) -> dict[str, Any]:
    """Schema of settings by their names in Python."""
    made = Settings.model_json_schema()["properties"]
    kept = {}
    for name in Settings.model_fields:
        if name not in left_out:
            field = made[name]
            kept[name] = {key: field[key] for key in _KEPT if key in field}
    return {"type": "object", "additionalProperties": False, "properties": kept}


def schema() -> dict[str, Any]:
    """The schema that helm checks values by."""
    described = {name: text for name, _, text in rows()}
    made = _of("", yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8")), described)
    # Helm hands subcharts' values and `global` to every chart.
    made["properties"]["global"] = {"type": "object"}
    made["properties"]["settings"] = settings(OWN | OF_WORKERS) | {"description": described["settings"]}
    made["properties"]["worker"]["properties"]["settings"] = settings(OWN) | {
        "description": described["worker.settings"]
    }
    return {"$schema": "http://json-schema.org/draft-07/schema#", **made}


def _of(name: str, value: Any, described: dict[str, str]) -> dict[str, Any]:
    if isinstance(value, dict) and value:
        children = {key: _of(f"{name}.{key}".strip("."), child, described) for key, child in value.items()}
        return {"type": "object", "additionalProperties": False, "properties": children}
    kinds = {bool: "boolean", int: "integer", str: "string", dict: "object", list: "array"}
    return {"type": kinds[type(value)], "description": described[name], **BOUNDS.get(name, {})}


def main() -> int:
    """Writes or checks."""
    readme = CHART / "README.md"
    text = readme.read_text(encoding="utf-8")
    start, end = "<!-- values -->\n", "<!-- end of values -->\n"
    before, _, rest = text.partition(start)
    wanted = {
        readme: f"{before}{start}\n{table()}\n\n{end}{rest.partition(end)[2]}",
        CHART / "values.schema.json": json.dumps(schema(), indent=2, ensure_ascii=False) + "\n",
    }
    old = [path for path, made in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != made]
    if "--check" in sys.argv:
        for path in old:
            print(f"{path} is not what tools/chart.py writes", file=sys.stderr)
        return int(bool(old))
    for path in old:
        path.write_text(wanted[path], encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
