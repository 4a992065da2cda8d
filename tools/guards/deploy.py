"""Images and the chart."""

from guard import Guard

GUARDS = [
    Guard(
        "deploy: several servers want a database that they share",
        "tests/e2e/test_chart.py::test_what_cannot_work_or_is_open_is_refused",
        "helm/luthier/templates/_helpers.tpl",
        "{{- if and $several (not .Values.database.existingSecret) -}}",
        "{{- if false -}}",
    ),
    Guard(
        "deploy: what is open to strangers is refused",
        "tests/e2e/test_chart.py::test_what_cannot_work_or_is_open_is_refused",
        "helm/luthier/templates/_helpers.tpl",
        "{{- if not .Values.insecure -}}",
        "{{- if false -}}",
    ),
    Guard(
        "deploy: the end of a pod leaves time for the drain",
        "tests/e2e/test_chart.py::test_the_end_leaves_time_for_the_drain",
        "helm/luthier/templates/deployment.yaml",
        "{{ add (int .Values.preStopSeconds) (int (ceil .Values.drainSeconds)) 10 }}",
        "30",
    ),
    Guard(
        "deploy: variables are the names of settings",
        "tests/e2e/test_chart.py::test_every_variable_is_a_setting_and_holds",
        "helm/luthier/templates/configmap.yaml",
        "LUTHIER_DRAIN_S:",
        "LUTHIER_DRAIN_SECONDS:",
    ),
    Guard(
        "deploy: probes ask the port without TLS",
        "tests/e2e/test_chart.py::test_ports_and_probes_are_those_that_the_server_opens",
        "helm/luthier/templates/deployment.yaml",
        """          livenessProbe:
            grpc:
              port: 50052
""",
        """          livenessProbe:
            grpc:
              port: 50051
""",
    ),
    Guard(
        "deploy: callers find servers and no workers",
        "tests/e2e/test_chart.py::test_selectors_find_servers_and_them_alone",
        "helm/luthier/templates/disruption.yaml",
        "      app.kubernetes.io/component: server\n",
    ),
    Guard(
        "deploy: nothing of training is in the image for serving",
        "tests/e2e/test_image.py::test_nothing_of_training_is_installed_and_all_is_pinned",
        "build.sh",
        "EXTRAS=serve,",
        "EXTRAS=serve,train,",
    ),
]
