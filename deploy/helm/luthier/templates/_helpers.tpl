{{- define "luthier.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "luthier.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: luthier
{{ include "luthier.selector" . }}
{{- end }}

{{- define "luthier.selector" -}}
app.kubernetes.io/name: luthier
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* What cannot work is refused here, each with the way out. */}}
{{- define "luthier.checks" -}}
{{- $several := or (gt (int .Values.replicas) 1) .Values.autoscaling.enabled .Values.worker.enabled -}}
{{- if and $several (not .Values.database.existingSecret) -}}
{{- fail "several servers, autoscaling and workers need PostgreSQL: SQLite in one pod's home is seen by that pod alone. Set database.existingSecret, or replicas=1 without autoscaling and worker" -}}
{{- end -}}
{{- if and $several (not .Values.artefacts.url) -}}
{{- fail "several servers, autoscaling and workers need an object store: what one pod's home holds is seen by that pod alone. Set artefacts.url to s3://BUCKET/FOLDER" -}}
{{- end -}}
{{- if not .Values.insecure -}}
{{- if not (and .Values.tls.existingSecret .Values.tokens.enabled) -}}
{{- fail "servers in a cluster are reached from other machines: set tls.existingSecret and tokens.enabled=true, or insecure=true where a network of your own protects them" -}}
{{- end -}}
{{- if and .Values.metrics.enabled (not .Values.tls.clientCertificates) -}}
{{- fail "the metrics' port takes no tokens: set tls.clientCertificates=true so that a scraper needs a certificate, or metrics.enabled=false, or insecure=true where a network of your own protects it" -}}
{{- end -}}
{{- end -}}
{{- if and .Values.tls.clientCertificates (not .Values.tls.existingSecret) -}}
{{- fail "tls.clientCertificates needs tls.existingSecret, whose ca.crt signs for callers" -}}
{{- end -}}
{{- if and (or .Values.tokens.policyConfigMap .Values.tokens.jwt.keys) (not .Values.tokens.enabled) -}}
{{- fail "tokens.policyConfigMap and tokens.jwt would not be heeded: set tokens.enabled=true" -}}
{{- end -}}
{{- if and .Values.tokens.jwt.keys (not .Values.tokens.jwt.audience) -}}
{{- fail "tokens.jwt.keys needs tokens.jwt.audience: a token that is for another service must not be taken" -}}
{{- end -}}
{{- if and .Values.http.origins (not .Values.http.enabled) -}}
{{- fail "http.origins would not be heeded: set http.enabled=true" -}}
{{- end -}}
{{- if and .Values.autoscaling.enabled (not .Values.metrics.enabled) -}}
{{- fail "autoscaling goes by the length of the queue, which is a metric: set metrics.enabled=true" -}}
{{- end -}}
{{- if and .Values.autoscaling.enabled (eq .Values.autoscaling.kind "keda") (not .Values.autoscaling.prometheus) -}}
{{- fail "autoscaling.kind=keda asks Prometheus for the length of the queue: set autoscaling.prometheus to its URL" -}}
{{- end -}}
{{- end }}

{{/* Environment that servers and workers share, from values and from secrets. */}}
{{- define "luthier.environment" -}}
{{- with .Values.database.existingSecret }}
- name: LUTHIER_DATABASE_URL
  valueFrom:
    secretKeyRef:
      name: {{ . }}
      key: {{ $.Values.database.key }}
{{- end }}
{{- with .Values.artefacts.url }}
- name: LUTHIER_ARTEFACTS
  value: {{ . | quote }}
{{- end }}
{{- with .Values.artefacts.endpoint }}
- name: AWS_ENDPOINT_URL
  value: {{ . | quote }}
{{- end }}
{{- with .Values.artefacts.region }}
- name: AWS_DEFAULT_REGION
  value: {{ . | quote }}
{{- end }}
{{- with .Values.artefacts.existingSecret }}
{{- range list "AWS_ACCESS_KEY_ID" "AWS_SECRET_ACCESS_KEY" }}
- name: {{ . }}
  valueFrom:
    secretKeyRef:
      name: {{ $.Values.artefacts.existingSecret }}
      key: {{ . }}
{{- end }}
{{- end }}
{{- end }}

{{- define "luthier.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "luthier.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* How many predictions wait for the servers, in PromQL. */}}
{{- define "luthier.queue" -}}
{{- $of := printf `namespace="%s",job="%s-metrics"` .Release.Namespace (include "luthier.name" .) -}}
sum(luthier_pool_waiting{pool="predictions",{{ $of }}}) + (sum(luthier_queue_waiting{ {{- $of -}} }) or vector(0))
{{- end }}
