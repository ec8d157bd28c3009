{{- define "jv.name" -}}
{{- .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- /* At most 36 characters: a gateway pod adds up to 25 to it, and a node name has at most 63. */ -}}
{{- define "jv.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 36 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 36 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- /* Labels of every object. Call with (dict "root" $ "part" "gateway"). */ -}}
{{- define "jv.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{ include "jv.selector" . }}
{{- end -}}

{{- define "jv.selector" -}}
app.kubernetes.io/name: {{ include "jv.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .part }}
{{- end -}}

{{- /* Image of a role. Call with (dict "root" $ "part" "gateway"). */ -}}
{{- define "jv.image" -}}
{{- $image := .root.Values.image -}}
{{- $repository := index $image.repositories .part | default (printf "%s-%s" $image.repository .part) -}}
{{- $digest := index $image.digests .part -}}
{{- if $digest -}}
{{- printf "%s@%s" $repository $digest -}}
{{- else -}}
{{- printf "%s:%s" $repository ($image.tag | default .root.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{- define "jv.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "jv.controlSecret" -}}
{{- if eq .Values.tls.kind "existing" -}}{{ .Values.tls.existingControlSecret }}{{- else -}}{{ include "jv.fullname" . }}-control-tls{{- end -}}
{{- end -}}

{{- define "jv.gatewaySecret" -}}
{{- if eq .Values.tls.kind "existing" -}}{{ .Values.tls.existingGatewaySecret }}{{- else -}}{{ include "jv.fullname" . }}-gateway-tls{{- end -}}
{{- end -}}

{{- define "jv.etcdSecret" -}}
{{- if eq .Values.tls.kind "existing" -}}{{ .Values.tls.existingEtcdSecret }}{{- else -}}{{ include "jv.fullname" . }}-etcd-tls{{- end -}}
{{- end -}}

{{- define "jv.operatorSecret" -}}
{{- if eq .Values.tls.kind "existing" -}}{{ .Values.tls.existingOperatorSecret }}{{- else -}}{{ include "jv.fullname" . }}-operator-tls{{- end -}}
{{- end -}}

{{- /* Names and addresses at which control is reached, as a JSON list. */ -}}
{{- define "jv.controlHosts" -}}
{{- $name := printf "%s-control" (include "jv.fullname" .) -}}
{{- $hosts := list $name (printf "%s.%s.svc" $name .Release.Namespace) (printf "%s-replicas.%s.svc" $name .Release.Namespace) -}}
{{- toJson (concat $hosts (list "localhost" "127.0.0.1") .Values.control.advertise | uniq) -}}
{{- end -}}

{{- /* Names and addresses at which the bundled etcd's members are reached, as a JSON list. The first is the one that a
client's certificate must carry: a gateway's has none, so a gateway cannot talk to the store. */ -}}
{{- define "jv.etcdHosts" -}}
{{- $name := printf "%s-etcd" (include "jv.fullname" .) -}}
{{- $hosts := list $name "localhost" "127.0.0.1" -}}
{{- range $i := until 3 -}}
{{- $hosts = append $hosts (printf "%s-%d.%s.%s.svc" $name $i $name $.Release.Namespace) -}}
{{- end -}}
{{- toJson $hosts -}}
{{- end -}}

{{- define "jv.controlReplicas" -}}
{{- if eq .Values.store.kind "embedded" -}}1{{- else -}}{{ .Values.control.replicas }}{{- end -}}
{{- end -}}

{{- define "jv.etcdEndpoints" -}}
{{- if eq .Values.store.kind "etcd-external" -}}
{{- toJson .Values.store.external.endpoints -}}
{{- else -}}
{{- $name := printf "%s-etcd" (include "jv.fullname" .) -}}
{{- $list := list -}}
{{- range $i := until 3 -}}
{{- $list = append $list (printf "https://%s-%d.%s.%s.svc:2379" $name $i $name $.Release.Namespace) -}}
{{- end -}}
{{- toJson $list -}}
{{- end -}}
{{- end -}}

{{- /* Pods of one part spread over machines and zones where they can. */ -}}
{{- define "jv.spread" -}}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "jv.selector" . | nindent 8 }}
  - maxSkew: 1
    topologyKey: topology.kubernetes.io/zone
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "jv.selector" . | nindent 8 }}
{{- end -}}

{{- /* The gateway's ways in, as a JSON list of name, protocol, port (in the pod) and servicePort. */ -}}
{{- define "jv.doors" -}}
{{- $doors := list (dict "name" "udp" "protocol" "UDP" "port" (int .Values.gateway.port) "servicePort" (int .Values.gateway.port)) -}}
{{- range $name, $protocol := dict "tcp" "TCP" "tls" "TCP" "quic" "UDP" -}}
{{- $door := index $.Values.gateway.transports $name -}}
{{- if $door.enabled -}}
{{- $doors = append $doors (dict "name" $name "protocol" $protocol "port" (int $door.port) "servicePort" (int ($door.servicePort | default $door.port))) -}}
{{- end -}}
{{- end -}}
{{- toJson $doors -}}
{{- end -}}

{{- /* A value as TOML on one line. Numbers of values arrive as floats, and the programs take whole ones. */ -}}
{{- define "jv.toml" -}}
{{- if kindIs "map" . -}}
{{- $pairs := list -}}
{{- range $key, $value := . -}}
{{- $pairs = append $pairs (printf "%s = %s" (toJson $key) (include "jv.toml" $value)) -}}
{{- end -}}
{ {{ join ", " $pairs }} }
{{- else if kindIs "slice" . -}}
{{- $items := list -}}
{{- range . -}}
{{- $items = append $items (include "jv.toml" .) -}}
{{- end -}}
[{{ join ", " $items }}]
{{- else if kindIs "float64" . -}}
{{- int64 . -}}
{{- else -}}
{{- toJson . -}}
{{- end -}}
{{- end -}}

{{- /* The `[audit]` settings of both programs. */ -}}
{{- define "jv.audit" -}}
audit.sinks = [
{{- range .Values.audit.sinks }}
  {{ include "jv.toml" . }},
{{- end }}
]
{{- end -}}

{{- /* What a pod mounts for its sinks. */ -}}
{{- define "jv.auditMounts" -}}
{{- range $i, $name := .Values.audit.secrets }}
- { name: audit-secret-{{ $i }}, mountPath: /etc/jumping-vpn-audit/{{ $name }}, readOnly: true }
{{- end }}
{{- if eq .Values.audit.volume.kind "emptyDir" }}
- { name: audit, mountPath: /var/lib/jump-audit }
{{- else if eq .Values.audit.volume.kind "claim" }}
# Two programs must not share a file or a spool.
- { name: audit, mountPath: /var/lib/jump-audit, subPathExpr: $(POD_NAME) }
{{- end }}
{{- end -}}

{{- /* The volumes of these mounts. Call with (dict "root" $ "mode" "0440"). */ -}}
{{- define "jv.auditVolumes" -}}
{{- $mode := .mode -}}
{{- with .root.Values.audit -}}
{{- range $i, $name := .secrets }}
- name: audit-secret-{{ $i }}
  secret: { secretName: {{ $name }}, defaultMode: {{ $mode }} }
{{- end }}
{{- if eq .volume.kind "emptyDir" }}
- name: audit
  emptyDir: { sizeLimit: {{ int .volume.sizeLimitMiB }}Mi }
{{- else if eq .volume.kind "claim" }}
- name: audit
  persistentVolumeClaim: { claimName: {{ .volume.existingClaim }} }
{{- end }}
{{- end -}}
{{- end -}}
