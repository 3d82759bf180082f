{{/* Prefix of all names. It leaves room for a suffix within the 63 characters of a label. */}}
{{- define "tunemill.fullname" -}}
{{- $name := ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) (contains .Chart.Name .Release.Name) -}}
{{- $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{/* Prefix of cluster-scoped names. It contains the namespace, because two namespaces may have a release of the same name. */}}
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

{{/* Whether the operator creates its certificate and stores it in a Secret of the chart. */}}
{{- define "tunemill.keepsCertificate" -}}
{{- if and .Values.progress.enabled (not .Values.progress.tls.existingSecret) }}true{{ end -}}
{{- end -}}

{{/* Whether a proxy is configured. */}}
{{- define "tunemill.proxied" -}}
{{- if or .Values.proxy.http .Values.proxy.https }}true{{ end -}}
{{- end -}}

{{- define "tunemill.noProxy" -}}
{{- concat (list "localhost" "127.0.0.1" ".svc" ".cluster.local") .Values.proxy.noProxy | uniq | join "," -}}
{{- end -}}

{{/* Port of a URL. */}}
{{- define "tunemill.portOf" -}}
{{- $url := urlParse . -}}
{{- regexFind "[0-9]+$" (regexFind ":[0-9]+$" $url.host) | default (ternary 443 80 (eq $url.scheme "https")) -}}
{{- end -}}

{{/* Value of the Prometheus label job for targets of the chart's ServiceMonitor. */}}
{{- define "tunemill.metricsName" -}}
{{- printf "%s-metrics" (include "tunemill.fullname" .) -}}
{{- end -}}
