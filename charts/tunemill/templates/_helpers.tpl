{{/* The stem of all names. Short enough for a suffix to fit into a label, which ends at 63 characters. */}}
{{- define "tunemill.fullname" -}}
{{- $name := ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) (contains .Chart.Name .Release.Name) -}}
{{- $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{/* The stem of cluster-scoped names: two releases of one name may live in two namespaces. */}}
{{- define "tunemill.clusterName" -}}
{{- printf "%s-%s" .Release.Namespace (include "tunemill.fullname" .) -}}
{{- end -}}

{{- define "tunemill.selectorLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end -}}

{{- define "tunemill.labels" -}}
{{ include "tunemill.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "tunemill.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (ternary (include "tunemill.fullname" .) "default" .Values.serviceAccount.create) -}}
{{- end -}}

{{- define "tunemill.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "tunemill.trainerImage" -}}
{{- .Values.trainer.image | default (printf "ghcr.io/tunemill/tunemill-trainer:%s" .Chart.AppVersion) -}}
{{- end -}}

{{- define "tunemill.progressName" -}}
{{- printf "%s-progress" (include "tunemill.fullname" .) -}}
{{- end -}}

{{- define "tunemill.progressHost" -}}
{{- printf "%s.%s.svc" (include "tunemill.progressName" .) .Release.Namespace -}}
{{- end -}}

{{- define "tunemill.progressSecretName" -}}
{{- .Values.progress.tls.existingSecret | default (include "tunemill.progressName" .) -}}
{{- end -}}

{{/* The operator keeps its certificate in a Secret of its own, unless it is given one. */}}
{{- define "tunemill.keepsCertificate" -}}
{{- if and .Values.progress.enabled (not .Values.progress.tls.existingSecret) }}true{{ end -}}
{{- end -}}

{{/* Whether there is a way out with proxies on it. */}}
{{- define "tunemill.proxied" -}}
{{- if or .Values.proxy.http .Values.proxy.https }}true{{ end -}}
{{- end -}}

{{- define "tunemill.noProxy" -}}
{{- concat (list "localhost" "127.0.0.1" ".svc" ".cluster.local") .Values.proxy.noProxy | uniq | join "," -}}
{{- end -}}

{{/* The port of a URL. */}}
{{- define "tunemill.portOf" -}}
{{- $url := urlParse . -}}
{{- regexFind "[0-9]+$" (regexFind ":[0-9]+$" $url.host) | default (ternary 443 80 (eq $url.scheme "https")) -}}
{{- end -}}

{{/* What Prometheus calls the target, with the chart's ServiceMonitor. */}}
{{- define "tunemill.metricsName" -}}
{{- printf "%s-metrics" (include "tunemill.fullname" .) -}}
{{- end -}}
