{{- define "example.app" -}}
- name: app
  image: {{ .Values.app }}
  env:
    - {name: CONSENTD_ADDR, value: "unix:/run/consentd/consentd.sock"}
  securityContext:
    runAsUser: 20001
    allowPrivilegeEscalation: false
    readOnlyRootFilesystem: true
    capabilities: {drop: [ALL]}
  volumeMounts:
    {{- include "consentd.mount" . | nindent 4 }}
{{- end }}
