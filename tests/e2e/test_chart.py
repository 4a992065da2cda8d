"""The chart, as Helm renders it: Kubernetes takes it, and what it says to servers is what servers understand."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from google.protobuf import json_format
from grpc_health.v1 import health_pb2, health_pb2_grpc

from images import DEPLOY
from luthier.settings import Settings
from support import ROOT, serving

TOOLS = ROOT / ".tools" / "deploy"
pytestmark = pytest.mark.skipif(
    not (TOOLS / ".made").exists(), reason="Helm's library is not installed; `make test` does"
)

SEVERAL = {"database": {"existingSecret": "db"}, "artefacts": {"url": "s3://team/luthier"}}
TLS = {"tls": {"existingSecret": "pair"}, "tokens": {"enabled": True}}

Manifest = dict[str, Any]


def render(*values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For each set of values its `manifests`, or why Helm has `refused` it."""
    command = [TOOLS / "bin" / "python", ROOT / "tools" / "check_deploy.py", "render", DEPLOY / "helm" / "luthier"]
    # Helm's environment has a Python of its own.
    done = subprocess.run(command, input=json.dumps(values), capture_output=True, text=True, check=True, env={})
    answers: list[dict[str, Any]] = json.loads(done.stdout)
    return answers


SETS: dict[str, dict[str, Any]] = {
    **{
        path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted((DEPLOY / "helm").glob("*.yaml"))
    },
    "tls": {**TLS, "metrics": {"enabled": False}},
    "http": {**TLS, "metrics": {"enabled": False}, "http": {"enabled": True, "origins": ["https://shop.example"]}},
    "mutual": {**TLS, "tls": {"existingSecret": "pair", "clientCertificates": True}, "drainSeconds": 90.5},
    "tokens": {
        **TLS,
        "metrics": {"enabled": False},
        "tokens": {
            "enabled": True,
            "policyConfigMap": "policy",
            "jwt": {"keys": "https://id.example.com/keys", "audience": "luthier", "issuer": "https://id.example.com"},
        },
    },
    "kept": {**SEVERAL, "insecure": True, "replicas": 3, "settings": {"poll_s": 0.2, "serve_device": "cuda"}},
}
"""The sets that the repository ships, and more."""


@pytest.fixture(scope="module")
def rendered() -> dict[str, list[Manifest]]:
    """The manifests of each set."""
    answers = render(*SETS.values())
    assert [answer.get("refused") for answer in answers] == [None] * len(SETS)
    return {name: answer["manifests"] for name, answer in zip(SETS, answers, strict=True)}


@pytest.fixture(params=SETS)
def manifests(request: pytest.FixtureRequest, rendered: dict[str, list[Manifest]]) -> list[Manifest]:
    """Those of one set."""
    return rendered[request.param]


def of_kind(manifests: list[Manifest], kind: str) -> dict[str, Manifest]:
    """The manifests of a kind by their names."""
    return {found["metadata"]["name"]: found for found in manifests if found["kind"] == kind}


def one(manifests: list[Manifest], kind: str) -> Manifest:
    """The only one of a kind."""
    [found] = of_kind(manifests, kind).values()
    return found


def pods(manifests: list[Manifest]) -> Iterator[tuple[Manifest, Manifest]]:
    """The pod template of each deployment, and its only container."""
    for deployment in of_kind(manifests, "Deployment").values():
        [container] = deployment["spec"]["template"]["spec"]["containers"]
        yield deployment["spec"]["template"], container


def server(manifests: list[Manifest]) -> tuple[Manifest, Manifest]:
    """Pod template and container of the servers."""
    [found] = [pod for pod in pods(manifests) if pod[1]["name"] == "server"]
    return found


def environment(manifests: list[Manifest], container: Manifest) -> dict[str, str]:
    """A container's environment; what is in a secret is a URL that would do."""
    [source] = container["envFrom"]
    variables = dict(of_kind(manifests, "ConfigMap")[source["configMapRef"]["name"]]["data"])
    for variable in container.get("env", []):
        assert variable["name"] not in variables
        variables[variable["name"]] = variable.get("value", "postgresql+psycopg://luthier@db/luthier")
    return variables


def test_linters_find_nothing() -> None:
    done = subprocess.run(
        [TOOLS / "bin" / "python", ROOT / "tools" / "check_deploy.py"], capture_output=True, text=True, env={}
    )
    assert done.returncode == 0, done.stderr
    done = subprocess.run([sys.executable, ROOT / "tools" / "chart.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({}, "insecure=true"),
    ({"tls": {"existingSecret": "pair"}}, "tokens.enabled=true"),
    (TLS, "tls.clientCertificates=true"),
    ({"insecure": True, "replicas": 2}, "database.existingSecret"),
    ({"insecure": True, "replicas": 2, "database": {"existingSecret": "db"}}, "artefacts.url"),
    ({"insecure": True, "worker": {"enabled": True}}, "database.existingSecret"),
    ({"insecure": True, "autoscaling": {"enabled": True}}, "database.existingSecret"),
    ({"insecure": True, "autoscaling": {"enabled": True, "kind": "keda"}, **SEVERAL}, "autoscaling.prometheus"),
    (
        {"insecure": True, "autoscaling": {"enabled": True}, "metrics": {"enabled": False}, **SEVERAL},
        "metrics.enabled=true",
    ),
    ({"insecure": True, "tls": {"clientCertificates": True}}, "tls.existingSecret"),
    ({"insecure": True, "tokens": {"policyConfigMap": "policy"}}, "tokens.enabled=true"),
    (
        {"insecure": True, **TLS, "tokens": {"enabled": True, "jwt": {"keys": "https://id.example.com/keys"}}},
        "audience",
    ),
    ({"insecure": True, "http": {"origins": ["*"]}}, "http.enabled=true"),
    ({"insecure": True, "replica": 2}, "additional properties 'replica' not allowed"),
    ({"insecure": True, "settings": {"most_wating": 2}}, "additional properties 'most_wating' not allowed"),
    ({"insecure": True, "settings": {"listen": "127.0.0.1:1"}}, "additional properties 'listen' not allowed"),
    ({"insecure": True, "settings": {"most_waiting": 0}}, "minimum: got 0, want 1"),
    ({"insecure": True, "replicas": 0}, "minimum: got 0, want 1"),
    ({"insecure": True, "artefacts": {"url": "gs://team"}}, "does not match pattern"),
    ({"insecure": True, "serveMemoryMb": "much"}, "got string, want integer"),
]
"""Values that cannot be meant, and what Helm answers."""


def test_what_cannot_work_or_is_open_is_refused() -> None:
    answers = render(*(values for values, _ in REFUSED))
    missing = [
        (values, words, answer.get("refused"))
        for (values, words), answer in zip(REFUSED, answers, strict=True)
        if words not in answer.get("refused", "")
    ]
    assert missing == []


def test_every_variable_is_a_setting_and_holds(manifests: list[Manifest], monkeypatch: pytest.MonkeyPatch) -> None:
    for _, container in pods(manifests):
        variables = environment(manifests, container)
        own = {name for name in variables if name.startswith("LUTHIER_")}
        assert {name.removeprefix("LUTHIER_").lower() for name in own} - Settings.model_fields.keys() == set()
        assert variables.keys() - own <= {
            "AWS_ENDPOINT_URL",
            "AWS_DEFAULT_REGION",
            "AWS_ACCESS_KEY_ID",
            "AWS_SECRET_ACCESS_KEY",
        }
        with monkeypatch.context() as within:
            for name, value in variables.items():
                within.setenv(name, value)
            # As the program reads them: what it refuses raises here.
            settings = Settings()
        assert {f"LUTHIER_{name.upper()}" for name in settings.model_fields_set} >= own
        assert container["args"][0] in ("serve", "worker")


def test_ports_and_probes_are_those_that_the_server_opens(manifests: list[Manifest]) -> None:
    _, container = server(manifests)
    variables = environment(manifests, container)
    opened = {port["name"]: port["containerPort"] for port in container["ports"]}
    names = {name: f"LUTHIER_{name.upper()}_LISTEN" for name in ("health", "http", "metrics")}
    names["grpc"] = "LUTHIER_LISTEN"
    assert opened == {
        name: int(variables[variable].rpartition(":")[2]) for name, variable in names.items() if variable in variables
    }
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        # The kubelet speaks no TLS.
        assert container[probe]["grpc"] == {"port": opened["health"]}
    # A server that is not ready for long is given up later than callers are sent elsewhere.
    ready, live = container["readinessProbe"], container["livenessProbe"]
    assert live["failureThreshold"] * live["periodSeconds"] > ready["failureThreshold"] * ready["periodSeconds"]
    for service in of_kind(manifests, "Service").values():
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= opened.keys()
    for policy in of_kind(manifests, "NetworkPolicy").values():
        assert {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]} == opened.keys() - {
            "health"
        }


def test_the_end_leaves_time_for_the_drain(manifests: list[Manifest]) -> None:
    pod, container = server(manifests)
    drain = float(environment(manifests, container)["LUTHIER_DRAIN_S"])
    waits = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert waits >= 1
    # What is left is for workers to give their operations back and for the database to close.
    assert pod["spec"]["terminationGracePeriodSeconds"] >= waits + drain + 10


def test_the_limit_of_memory_is_above_what_the_server_may_hold(manifests: list[Manifest]) -> None:
    _, container = server(manifests)
    held = int(environment(manifests, container)["LUTHIER_SERVE_MEMORY_MB"])
    resources = container["resources"]
    assert resources["limits"]["memory"] == resources["requests"]["memory"]
    assert int(resources["limits"]["memory"].removesuffix("Mi")) >= held + 256
    assert "cpu" not in resources["limits"]


def test_pods_are_restricted(manifests: list[Manifest]) -> None:
    for pod, container in pods(manifests):
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == 65532
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert spec["automountServiceAccountToken"] is False
        # Else a service named luthier would set variables of ours.
        assert spec["enableServiceLinks"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & spec.keys()
        account = of_kind(manifests, "ServiceAccount")[spec["serviceAccountName"]]
        assert account["automountServiceAccountToken"] is False
    assert of_kind(manifests, "Secret") == {}


def test_what_is_mounted_is_there(manifests: list[Manifest]) -> None:
    for pod, container in pods(manifests):
        volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
        assert {mount["name"] for mount in mounts.values()} == volumes.keys()
        assert {"/tmp", "/var/luthier"} <= mounts.keys()
        variables = environment(manifests, container)
        assert variables["LUTHIER_HOME"] in mounts
        for name in ("LUTHIER_TLS_CERTIFICATE", "LUTHIER_TLS_KEY", "LUTHIER_TLS_CLIENT_CA", "LUTHIER_POLICY"):
            assert name not in variables or mounts[str(Path(variables[name]).parent)]["readOnly"] is True
        claims = {v["persistentVolumeClaim"]["claimName"] for v in volumes.values() if "persistentVolumeClaim" in v}
        assert claims == of_kind(manifests, "PersistentVolumeClaim").keys()
        for volume in volumes.values():
            assert "emptyDir" not in volume or volume["emptyDir"]["sizeLimit"]


def test_one_home_has_one_server_and_several_have_none_of_their_own(manifests: list[Manifest]) -> None:
    _, container = server(manifests)
    deployment = of_kind(manifests, "Deployment")["prod-luthier"]["spec"]
    shared = {"LUTHIER_DATABASE_URL", "LUTHIER_ARTEFACTS"} <= environment(manifests, container).keys()
    claims = of_kind(manifests, "PersistentVolumeClaim")
    if shared:
        assert claims == {}
        assert deployment["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    else:
        assert len(claims) == deployment["replicas"] == 1
        assert deployment["strategy"] == {"type": "Recreate"}
    several = deployment.get("replicas") != 1
    assert ("topologySpreadConstraints" in deployment["template"]["spec"]) == several
    assert bool(of_kind(manifests, "PodDisruptionBudget")) == several


def test_selectors_find_servers_and_them_alone(manifests: list[Manifest]) -> None:
    labels = {
        pod["metadata"]["labels"]["app.kubernetes.io/component"]: pod["metadata"]["labels"]
        for pod, _ in pods(manifests)
    }

    def found(selector: Mapping[str, str]) -> set[str]:
        return {name for name, of in labels.items() if selector.items() <= of.items()}

    for deployment in of_kind(manifests, "Deployment").values():
        template = deployment["spec"]["template"]["metadata"]["labels"]
        assert found(deployment["spec"]["selector"]["matchLabels"]) == {template["app.kubernetes.io/component"]}
    for service in of_kind(manifests, "Service").values():
        assert found(service["spec"]["selector"]) == {"server"}
    for budget in of_kind(manifests, "PodDisruptionBudget").values():
        assert found(budget["spec"]["selector"]["matchLabels"]) == {"server"}
    for policy in of_kind(manifests, "NetworkPolicy").values():
        assert found(policy["spec"]["podSelector"]["matchLabels"]) == labels.keys()
    for monitor in of_kind(manifests, "ServiceMonitor").values():
        wanted = monitor["spec"]["selector"]["matchLabels"]
        watched = [
            s for s in of_kind(manifests, "Service").values() if wanted.items() <= s["metadata"]["labels"].items()
        ]
        [service] = watched
        [endpoint] = monitor["spec"]["endpoints"]
        assert [port["name"] for port in service["spec"]["ports"]] == [endpoint["port"]]


def test_a_client_that_balances_finds_each_server(manifests: list[Manifest]) -> None:
    services = of_kind(manifests, "Service")
    assert services["prod-luthier-headless"]["spec"]["clusterIP"] == "None"
    assert services["prod-luthier-headless"]["spec"]["ports"] == [
        {"name": "grpc", "port": services["prod-luthier"]["spec"]["ports"][0]["port"], "targetPort": "grpc"}
    ]


def test_the_autoscaler_asks_for_the_metric_that_is_made(rendered: dict[str, list[Manifest]]) -> None:
    scaler = one(rendered["production"], "HorizontalPodAutoscaler")["spec"]
    assert scaler["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "prod-luthier"}
    assert "replicas" not in of_kind(rendered["production"], "Deployment")["prod-luthier"]["spec"]
    adapter = yaml.safe_load((DEPLOY / "prometheus-adapter.yml").read_text(encoding="utf-8"))
    [rule] = adapter["rules"]["custom"]
    assert scaler["metrics"][0]["pods"]["metric"]["name"] == rule["name"]["as"]
    [trigger] = one(rendered["gpu"], "ScaledObject")["spec"]["triggers"]
    # Both count the same; test_deploy.py checks that servers have these series.
    assert set(re.findall(r"luthier_\w+", trigger["metadata"]["query"])) == {
        "luthier_pool_waiting",
        "luthier_queue_waiting",
    }
    monitored = one(rendered["production"], "ServiceMonitor")["metadata"]["name"]
    assert f'job="{monitored}-metrics"' in trigger["metadata"]["query"]


def test_workers_do_what_servers_then_do_not(rendered: dict[str, list[Manifest]]) -> None:
    _, serving_container = server(rendered["gpu"])
    assert environment(rendered["gpu"], serving_container)["LUTHIER_JOBS"] == "0"
    [(pod, container)] = [found for found in pods(rendered["gpu"]) if found[1]["name"] == "worker"]
    variables = environment(rendered["gpu"], container)
    assert (variables["LUTHIER_TRAIN_DEVICE"], variables["LUTHIER_JOBS"]) == ("cuda", "2")
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert pod["spec"]["tolerations"] == SETS["gpu"]["worker"]["tolerations"]
    [(_, container)] = [found for found in pods(rendered["production"]) if found[1]["name"] == "worker"]
    assert "LUTHIER_TRAIN_DEVICE" not in environment(rendered["production"], container)
    assert container["resources"]["limits"].keys() == {"memory"}
    # Without workers a server does the small jobs itself; it cannot train.
    _, alone = server(rendered["minimal"])
    assert environment(rendered["minimal"], alone)["LUTHIER_JOBS"] == "1"
    assert environment(rendered["minimal"], alone)["LUTHIER_TRAININGS"] == "0"


def test_a_server_takes_what_the_chart_says(rendered: dict[str, list[Manifest]], tmp_path: Path) -> None:
    _, container = server(rendered["minimal"])
    variables = environment(rendered["minimal"], container)
    # The same but for ports, of which the test takes free ones.
    free = dict.fromkeys(("LUTHIER_HEALTH_LISTEN", "LUTHIER_METRICS_LISTEN"), "127.0.0.1:0")
    with serving(tmp_path, listen="0.0.0.0:0", **{**variables, **free}) as running:
        [address] = [json.loads(line)["address"] for line in running.log if '"event": "health"' in line]
        with grpc.insecure_channel(address) as channel:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
    assert json_format.MessageToDict(answer) == {"status": "SERVING"}
