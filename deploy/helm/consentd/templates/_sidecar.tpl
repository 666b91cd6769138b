{{/*
A native sidecar for any pod. In the pod's spec:

    spec:
      {{- include "consentd.pod" . | nindent 6 }}
      initContainers:
        {{- include "consentd.sidecar" . | nindent 8 }}
      volumes:
        {{- include "consentd.volumes" . | nindent 8 }}

and in the volumeMounts of each container that asks:

            {{- include "consentd.mount" . | nindent 12 }}
*/}}

{{/* The pod's grace period, and a security context that lets its containers reach the socket. */}}
{{- define "consentd.pod" -}}
{{- $v := include "consentd.values" . | fromYaml }}
{{- $s := $v.sidecar }}
{{- $needed := add (int64 $s.appSeconds) (mul 2 (int64 $s.drainSeconds)) 2 }}
{{- $given := $s.terminationGracePeriodSeconds }}
{{- if and (not (kindIs "invalid" $given)) (lt (int64 $given) $needed) }}
{{- fail (printf "sidecar.terminationGracePeriodSeconds is %d, and the app's %d seconds and twice a drain of %d need %d: raise it, or leave it out" (int64 $given) (int64 $s.appSeconds) (int64 $s.drainSeconds) $needed) }}
{{- end -}}
terminationGracePeriodSeconds: {{ if kindIs "invalid" $given }}{{ $needed }}{{ else }}{{ int64 $given }}{{ end }}
enableServiceLinks: false
securityContext:
  {{- include "consentd.podSecurity" $v | nindent 2 }}
{{- end }}

{{/* The sidecar, for initContainers. */}}
{{- define "consentd.sidecar" -}}
{{- $v := include "consentd.values" . | fromYaml }}
{{- $s := include "consentd.part" $v.sidecar | fromYaml -}}
- name: consentd
  image: {{ include "consentd.image" $v | quote }}
  imagePullPolicy: {{ $v.image.pullPolicy }}
  restartPolicy: Always
  args:
    - serve
    {{- with $s.extraArgs }}
    {{- include "consentd.words" . | nindent 4 }}
    {{- end }}
  env:
    {{- include "consentd.ledgerEnv" $v | nindent 4 }}
    - {name: CONSENTD_LISTEN, value: {{ $s.listen | quote }}}
    - {name: CONSENTD_UNIX, value: {{ $s.socket | quote }}}
    - {name: CONSENTD_ADMIN, value: "0.0.0.0:{{ int64 $s.adminPort }}"}
    - {name: CONSENTD_MAX_STALENESS, value: {{ $v.maxStaleness | quote }}}
    - {name: CONSENTD_WORKERS, value: "{{ int64 $s.workers }}"}
    - {name: CONSENTD_MAX_CONNECTIONS, value: "{{ int64 $s.maxConnections }}"}
    - {name: CONSENTD_MAX_REQUEST_BYTES, value: {{ int64 $s.maxRequestMiB }}MiB}
    - {name: CONSENTD_DRAIN_TIMEOUT, value: {{ int64 $s.drainSeconds }}s}
    {{- if $s.snapshot }}
    - {name: CONSENTD_SNAPSHOT, value: /var/lib/consentd/table}
    {{- end }}
    # Where `kubectl exec POD -c consentd -- /consentd status` asks.
    - {name: CONSENTD_ADDR, value: {{ printf "unix:%s" $s.socket | quote }}}
    {{- with include "consentd.tlsEnv" (dict "tls" $s.tls "listeners" (ternary list (list "listen") (eq $s.listen "none")) "port" $s.adminPort "name" "sidecar") | trim }}{{ . | nindent 4 }}{{ end }}
    {{- with $s.extraEnv }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  ports:
    {{- include "consentd.adminPorts" (dict "tls" $s.tls "port" $s.adminPort) | nindent 4 }}
  securityContext:
    {{- include "consentd.containerSecurity" $v | nindent 4 }}
  # It never gives up: being killed would only delay the app, which starts once it passes.
  startupProbe:
    httpGet: {path: {{ ternary "/readyz" "/livez" $s.waitForTable }}, port: {{ include "consentd.probePort" $s.tls }}}
    periodSeconds: 1
    timeoutSeconds: 1
    failureThreshold: 86400
  livenessProbe:
    {{- include "consentd.livenessProbe" $s.tls | nindent 4 }}
  resources:
    {{- include "consentd.resources" (dict "pairs" $v.pairs "part" $s "name" "sidecar") | nindent 4 }}
  terminationMessagePolicy: FallbackToLogsOnError
  volumeMounts:
    - {name: consentd-socket, mountPath: {{ dir $s.socket | quote }}}
    {{- if $s.snapshot }}
    - {name: consentd-snapshot, mountPath: /var/lib/consentd}
    {{- end }}
    {{- if $v.ledger.passwordSecret }}
    - {name: consentd-ledger, mountPath: /etc/consentd-ledger, readOnly: true}
    {{- end }}
    {{- with include "consentd.tlsMounts" $s.tls | trim }}{{ . | nindent 4 }}{{ end }}
{{- end }}

{{/* The socket's volume, for the volumeMounts of a container that asks. */}}
{{- define "consentd.mount" -}}
{{- $v := include "consentd.values" . | fromYaml -}}
- {name: consentd-socket, mountPath: {{ dir $v.sidecar.socket | quote }}, readOnly: true}
{{- end }}

{{/* The volumes of the sidecar. */}}
{{- define "consentd.volumes" -}}
{{- $v := include "consentd.values" . | fromYaml -}}
- {name: consentd-socket, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
{{- if $v.sidecar.snapshot }}
- {name: consentd-snapshot, emptyDir: {}}
{{- end }}
{{- if $v.ledger.passwordSecret }}
- {name: consentd-ledger, secret: {secretName: {{ $v.ledger.passwordSecret }}, defaultMode: 0440}}
{{- end }}
{{- with include "consentd.tlsVolumes" (dict "tls" ($v.sidecar.tls | default dict) "name" "") | trim }}{{ . | nindent 0 }}{{ end }}
{{- end }}
