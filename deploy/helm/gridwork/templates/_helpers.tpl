{{- define "gridwork.name" -}}
{{- if contains "gridwork" .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-gridwork" .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "gridwork.selector" -}}
app.kubernetes.io/name: gridwork
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "gridwork.labels" -}}
{{ include "gridwork.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "gridwork.claim" -}}
{{- if .Values.modelVolume.existingClaim -}}
{{ .Values.modelVolume.existingClaim }}
{{- else if .Values.modelVolume.create -}}
{{ include "gridwork.name" . }}-models
{{- end -}}
{{- end -}}

{{/* How the port for clients is spoken to. */}}
{{- define "gridwork.scheme" -}}
{{ if .Values.tls.secret }}HTTPS{{ else }}HTTP{{ end }}
{{- end }}
