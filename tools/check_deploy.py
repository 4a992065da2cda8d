"""Checks what deploys Luthier: Containerfiles, YAML, and the chart as Helm renders it, by the linters of each.

    .tools/deploy/bin/python tools/check_deploy.py                  all checks
    .tools/deploy/bin/python tools/check_deploy.py render CHART     renders a chart for the tests

`render` reads a JSON list of values and prints, for each, its manifests, or what Helm says against it. `make lint`
makes the environment: Helm's own library, Kubernetes' schemas, hadolint, yamllint.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import yaml

ROOT = Path(__file__).parent.parent
CHART = ROOT / "deploy" / "helm" / "luthier"
VERSIONS = ("1.30.14", "1.37.0")
"""Of Kubernetes: the oldest that the chart takes, and the newest that there are schemas of."""
OF_OTHERS = ("keda.sh/", "monitoring.coreos.com/")
"""Groups of resources that Kubernetes has no schemas of."""


def value_sets() -> list[Path]:
    """The files of values that the repository ships."""
    return sorted((ROOT / "deploy" / "helm").glob("*.yaml"))


def manifests(chart: helm_python.Chart, values: dict[str, Any]) -> list[dict[str, Any]]:
    """What Helm would send to a cluster. Raises HelmError as `helm install` would fail."""
    chart.validate_schema(values)
    rendered = chart.render(values, name="prod", namespace="ml")
    texts = [text for name, text in rendered.items() if name.endswith(".yaml")]
    return [document for text in texts for document in yaml.safe_load_all(text) if document]


def run(*command: str | Path) -> Iterator[str]:
    """What a linter finds."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        yield (done.stdout + done.stderr).strip()


def problems() -> Iterator[str]:
    """All that is wrong."""
    tools = Path(sys.executable).parent
    yield from run(tools / "hadolint", *sorted((ROOT / "deploy").glob("Containerfile*")))
    lines = [*sorted((ROOT / "deploy").glob("*.yml")), *value_sets(), CHART / "Chart.yaml", CHART / "values.yaml"]
    yield from run(tools / "yamllint", "--strict", "--config-file", ".yamllint", *lines)
    with helm_python.Chart.load(CHART) as chart:
        for file in value_sets():
            values = yaml.safe_load(file.read_text(encoding="utf-8"))
            report = helm_python.lint(CHART, values, strict=True, namespace="ml")
            said = [f"{m['path']}: {m['error']}" for m in report["messages"] if m["severity"] > 1] + report["errors"]
            yield from (f"{file.name}: helm lint: {text}" for text in said)
            for document in manifests(chart, values):
                if not document["apiVersion"].startswith(OF_OTHERS):
                    yield from against_schema(file, document)


def against_schema(file: Path, document: dict[str, Any]) -> Iterator[str]:
    """What Kubernetes' schemas say against a manifest."""
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            yield f"{file.name}: {document['kind']}: Kubernetes {version}: {error.message} at {list(error.path)}"


def render(path: str) -> None:
    """For the tests."""
    answers: list[dict[str, Any]] = []
    with helm_python.Chart.load(path) as chart:
        for values in json.load(sys.stdin):
            try:
                answers.append({"manifests": manifests(chart, values)})
            except helm_python.HelmError as error:
                answers.append({"refused": str(error)})
    json.dump(answers, sys.stdout)


def main() -> int:
    """Checks, or renders."""
    if sys.argv[1:2] == ["render"]:
        render(sys.argv[2])
        return 0
    found = list(problems())
    print("\n".join(found), file=sys.stderr)
    count = len(value_sets())
    if not found:
        print(f"Containerfiles, YAML and the chart with {count} sets of values: Helm {helm_python.helm_sdk_version()}")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
