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

{{/* A part's values. `helm upgrade --reuse-values` brings those of an older chart, which lack what came later. */}}
{{- define "consentd.part" -}}
{{- mergeOverwrite (dict "tls" dict "autoscaling" dict) (deepCopy .) | toYaml }}
{{- end }}

{{/* Whether a part's listeners serve TLS: "yes" or nothing. */}}
{{- define "consentd.hasTLS" -}}
{{- if or .secret .issuerRef }}yes{{ end }}
{{- end }}

{{/* Whether its admin listener does. */}}
{{- define "consentd.hasAdminTLS" -}}
{{- if .admin }}{{ include "consentd.hasTLS" . }}{{ end }}
{{- end }}

{{/* The name of a part's admin port. Scrapers tell by it whether TLS is spoken there. */}}
{{- define "consentd.adminPort" -}}
{{- if include "consentd.hasAdminTLS" . }}consentd-tls{{ else }}consentd-admin{{ end }}
{{- end }}

{{/* The name of the port that probes ask, which never serves TLS. */}}
{{- define "consentd.probePort" -}}
{{- if include "consentd.hasAdminTLS" . }}consentd-probes{{ else }}consentd-admin{{ end }}
{{- end }}

{{/* The ports of probes and metrics: (dict "tls" TLS "port" NUMBER). */}}
{{- define "consentd.adminPorts" -}}
- {name: {{ include "consentd.adminPort" .tls }}, containerPort: {{ int64 .port }}}
{{- if include "consentd.hasAdminTLS" .tls }}
- {name: consentd-probes, containerPort: {{ add (int64 .port) 1 }}}
{{- end }}
{{- end }}

{{/* Variables of TLS: (dict "tls" TLS "listeners" NAMES "port" NUMBER OF THE ADMIN LISTENER). */}}
{{- define "consentd.tlsEnv" -}}
{{- if include "consentd.hasTLS" .tls }}
{{- $listeners := .listeners }}
{{- if .tls.admin }}{{ $listeners = append $listeners "admin" }}{{ end }}
{{- if not $listeners }}{{ fail (printf "%s.tls: no listener would serve it; give listen an address, or set admin" .name) }}{{ end }}
- {name: CONSENTD_TLS_CERT_FILE, value: /etc/consentd-tls/tls.crt}
- {name: CONSENTD_TLS_KEY_FILE, value: /etc/consentd-tls/tls.key}
- {name: CONSENTD_TLS_LISTENERS, value: {{ $listeners | join "," | quote }}}
{{- if .tls.clientCASecret }}
- {name: CONSENTD_TLS_CLIENT_CA_FILE, value: /etc/consentd-client-ca/{{ .tls.clientCAKey }}}
{{- end }}
{{- if .tls.admin }}
- {name: CONSENTD_PROBES, value: "0.0.0.0:{{ add (int64 .port) 1 }}"}
{{- end }}
{{- else if or .tls.clientCASecret .tls.admin }}
{{- fail (printf "%s.tls.secret is needed: a Secret with the certificate and key of TLS" .name) }}
{{- end }}
{{- end }}

{{- define "consentd.tlsMounts" -}}
{{- if include "consentd.hasTLS" . }}
- {name: consentd-tls, mountPath: /etc/consentd-tls, readOnly: true}
{{- if .clientCASecret }}
- {name: consentd-client-ca, mountPath: /etc/consentd-client-ca, readOnly: true}
{{- end }}
{{- end }}
{{- end }}

{{/* Volumes of TLS: (dict "tls" TLS "name" NAME OF THE PART'S SERVICE). */}}
{{- define "consentd.tlsVolumes" -}}
{{- if include "consentd.hasTLS" .tls }}
- {name: consentd-tls, secret: {secretName: {{ .tls.secret | default (printf "%s-tls" .name) }}, defaultMode: 0440}}
{{- if .tls.clientCASecret }}
- {name: consentd-client-ca, secret: {secretName: {{ .tls.clientCASecret }}, items: [{key: {{ .tls.clientCAKey }}, path: {{ .tls.clientCAKey }}}], defaultMode: 0440}}
{{- end }}
{{- end }}
{{- end }}

{{/* A certificate of the Service's names, renewed by cert-manager. */}}
{{- define "consentd.certificate" -}}
{{- with .tls.issuerRef }}
---
apiVersion: cert-manager.io/v1
kind: Certificate
metadata:
  name: {{ $.name }}
  labels:
    {{- include "consentd.labels" $.labels | nindent 4 }}
spec:
  secretName: {{ $.tls.secret | default (printf "%s-tls" $.name) }}
  issuerRef:
    {{- toYaml . | nindent 4 }}
  dnsNames:
    {{- range list "" (printf ".%s" $.root.Release.Namespace) (printf ".%s.svc" $.root.Release.Namespace) (printf ".%s.svc.cluster.local" $.root.Release.Namespace) }}
    - {{ $.name }}{{ . }}
    {{- end }}
  privateKey: {algorithm: ECDSA, size: 256, rotationPolicy: Always}
  usages: [digital signature, server auth]
{{- end }}
{{- end }}

{{/* Scales a Deployment: (dict "root" $ "name" NAME "labels" LABELS "part" VALUES). */}}
{{- define "consentd.autoscaler" -}}
{{- $a := .part.autoscaling }}
{{- if $a.enabled }}
{{- if lt (int64 $a.maxReplicas) (int64 .part.replicas) }}
{{- fail (printf "%s: autoscaling.maxReplicas is %d, and replicas, the fewest, %d" .name (int64 $a.maxReplicas) (int64 .part.replicas)) }}
{{- end }}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: {{ .name }}
  labels:
    {{- include "consentd.labels" .labels | nindent 4 }}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: {{ .name }}}
  minReplicas: {{ .part.replicas }}
  maxReplicas: {{ $a.maxReplicas }}
  metrics:
    - type: Resource
      resource: {name: cpu, target: {type: Utilization, averageUtilization: {{ $a.cpu }}}}
    {{- with $a.inFlight }}
    # Recordings that wait for the ledger. They take no CPU, which therefore does not show them.
    - type: Pods
      pods:
        metric: {name: consent_in_flight, selector: {matchLabels: {pool: records}}}
        target: {type: AverageValue, averageValue: {{ . | quote }}}
    {{- end }}
{{- end }}
{{- end }}

{{/* The configuration file: that of the values, with the roles. */}}
{{- define "consentd.config" -}}
{{- .Values.config }}
{{- if .Values.roles }}
{{- if regexMatch "(?m)^\\s*\\[roles\\]" .Values.config }}{{ fail "roles are given, and a table [roles] in config too: leave one of both out" }}{{ end }}
{{- with .Values.config }}{{ if not (hasSuffix "\n" .) }}{{ "\n" }}{{ end }}{{ end }}[roles]
{{- range $name, $roles := .Values.roles }}
{{ $name | toJson }} = {{ $roles | toJson }}
{{- end }}
{{- end }}
{{- end }}

{{/* Roles are those of certificates: without a CA of clients nobody has one. */}}
{{- define "consentd.checkRoles" -}}
{{- if and .root.Values.roles (not .tls.clientCASecret) }}
{{- fail (printf "%s.tls.clientCASecret is needed by roles: a Secret with the CAs of the clients' certificates" .name) }}
{{- end }}
{{- end }}

{{/* What every client of the standalone sidecar may do, as ROLE,… Values of an older chart have no such key. */}}
{{- define "consentd.anonymousRoles" -}}
{{- $given := .part.anonymousRoles }}
{{- $hasRoles := regexMatch "(?m)^\\s*\\[roles\\]" (include "consentd.config" .root) }}
{{- if kindIs "invalid" $given }}
{{- if not $hasRoles }}check{{ end }}
{{- else if or $given $hasRoles }}{{ join "," $given }}
{{- else }}
{{- fail "standalone.anonymousRoles is empty and there are no roles, so that nobody could check: give roles, or standalone.anonymousRoles" }}
{{- end }}
{{- end }}

{{/* A list of arguments, of which `--set` makes numbers and booleans, as strings. A number from a file of values is a float, which toString would write as 5e+06. */}}
{{- define "consentd.words" -}}
{{- $words := list }}
{{- range . }}
{{- $words = append $words (ternary . (toJson .) (kindIs "string" .)) }}
{{- end }}
{{- toYaml $words }}
{{- end }}

{{/* Liveness asks /livez alone: a stale table must not restart a sidecar. */}}
{{- define "consentd.livenessProbe" -}}
httpGet: {path: /livez, port: {{ include "consentd.probePort" . }}}
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
{{- if include "consentd.config" . }}
- {name: config, mountPath: /etc/consentd, readOnly: true}
{{- end }}
{{- if .Values.ledger.passwordSecret }}
- {name: ledger, mountPath: /etc/consentd-ledger, readOnly: true}
{{- end }}
{{- end }}

{{- define "consentd.commonVolumes" -}}
{{- if include "consentd.config" . }}
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
