{{/* The values of this chart, whether it is the release's own chart or a dependency of the caller's. */}}
{{- define "consentd.values" -}}
{{- if hasKey .Values "consentd" }}{{ toYaml .Values.consentd }}{{ else }}{{ toYaml .Values }}{{ end }}
{{- end }}

{{- define "consentd.fullname" -}}
{{- if contains "consentd" .Release.Name }}{{ .Release.Name | trunc 52 | trimSuffix "-" }}{{ else }}{{ printf "%s-consentd" .Release.Name | trunc 52 | trimSuffix "-" }}{{ end }}
{{- end }}

{{/* Labels of an object: (dict "root" $ "component" NAME). */}}
{{- define "consentd.labels" -}}
{{ include "consentd.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | quote }}
{{- end }}

{{/* Labels that never change, for selectors. */}}
{{- define "consentd.selector" -}}
app.kubernetes.io/name: consentd
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* The image of the values. */}}
{{- define "consentd.image" -}}
{{- if .image.digest }}{{ .image.repository }}@{{ .image.digest }}{{ else }}{{ .image.repository }}:{{ .image.tag | default "0.1.0" }}{{ end }}
{{- end }}

{{/*
The memory of a container in MiB: (dict "pairs" N "part" VALUES "cache" MiB "name" VALUE).

    30 + pairs × 64 bytes + maxRequestMiB + maxConnections × 1.2 MiB, and for a ledger's file its cache + 24

30 MiB are the empty process and the listeners of webhooks and metrics. A pair takes 32 bytes, with an
expiry 50; the rest of the 64 is for what a reload and a snapshot take beside it.
*/}}
{{- define "consentd.memory" -}}
{{- $table := div (add (mul (int64 .pairs) 64) 1048575) 1048576 }}
{{- $connections := div (add (mul (int64 (.part.maxConnections | default 0)) 6) 4) 5 }}
{{- $needed := add 30 $table (int64 (.part.maxRequestMiB | default 64)) $connections (int64 (.cache | default 0)) }}
{{- $given := .part.resources.memoryMiB }}
{{- if kindIs "invalid" $given }}{{ $needed }}
{{- else if lt (int64 $given) $needed }}
{{- fail (printf "%s.resources.memoryMiB is %d, and %d pairs with maxConnections %d need %d: raise it, or leave it out" .name (int64 $given) (int64 .pairs) (int64 (.part.maxConnections | default 0)) $needed) }}
{{- else }}{{ int64 $given }}{{ end }}
{{- end }}

{{/* Resources with that memory as request and limit, and a CPU request without a limit. */}}
{{- define "consentd.resources" -}}
{{- $memory := include "consentd.memory" . -}}
requests: {cpu: {{ .part.resources.cpu | quote }}, memory: {{ $memory }}Mi}
limits: {memory: {{ $memory }}Mi}
{{- end }}

{{/* The security context of a container under `restricted`. */}}
{{- define "consentd.containerSecurity" -}}
runAsNonRoot: true
{{- with .security.runAsUser }}
runAsUser: {{ int64 . }}
runAsGroup: {{ int64 . }}
{{- end }}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{/* The security context of a pod. */}}
{{- define "consentd.podSecurity" -}}
runAsNonRoot: true
{{- with .security.fsGroup }}
fsGroup: {{ int64 . }}
fsGroupChangePolicy: OnRootMismatch
{{- end }}
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{/* Variables that lead to the shared ledger. */}}
{{- define "consentd.ledgerEnv" -}}
- {name: CONSENTD_LEDGER, value: {{ required "ledger.url is needed: the address of the ledger in Redis, redis://HOST:PORT" .ledger.url | quote }}}
{{- with .ledger.user }}
- {name: CONSENTD_LEDGER_USER, value: {{ . | quote }}}
{{- end }}
{{- if .ledger.passwordSecret }}
- {name: CONSENTD_LEDGER_PASSWORD_FILE, value: /etc/consentd-ledger/{{ .ledger.passwordKey }}}
{{- end }}
{{- end }}

{{/* Liveness asks /livez alone: a stale table must not restart a sidecar. */}}
{{- define "consentd.livenessProbe" -}}
httpGet: {path: /livez, port: consentd-admin}
periodSeconds: 5
timeoutSeconds: 2
failureThreshold: 3
terminationGracePeriodSeconds: 5
{{- end }}

{{/* Where pods may run, and that they are spread over nodes and zones. */}}
{{- define "consentd.placement" -}}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .part.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .part.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .part.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
  {{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "consentd.selector" $.labels | nindent 8 }}
  {{- end }}
{{- end }}

{{- define "consentd.commonMounts" -}}
{{- if .Values.config }}
- {name: config, mountPath: /etc/consentd, readOnly: true}
{{- end }}
{{- if .Values.ledger.passwordSecret }}
- {name: ledger, mountPath: /etc/consentd-ledger, readOnly: true}
{{- end }}
{{- end }}

{{- define "consentd.commonVolumes" -}}
{{- if .Values.config }}
- {name: config, configMap: {name: {{ include "consentd.fullname" . }}}}
{{- end }}
{{- if .Values.ledger.passwordSecret }}
- {name: ledger, secret: {secretName: {{ .Values.ledger.passwordSecret }}, defaultMode: 0440}}
{{- end }}
{{- end }}

{{/* A budget that lets one pod be away; with a single one it would block every drain of its node. */}}
{{- define "consentd.budget" -}}
{{- if and .root.Values.podDisruptionBudget.enabled (gt (int64 .replicas) 1) }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ .name }}
  labels:
    {{- include "consentd.labels" .labels | nindent 4 }}
spec:
  maxUnavailable: 1
  selector:
    matchLabels:
      {{- include "consentd.selector" .labels | nindent 6 }}
{{- end }}
{{- end }}
