{{- /* "true" when two IPv4 CIDRs overlap; IPv6 is compared as text. Call with (dict "a" … "b" …). */ -}}
{{- define "jv.overlaps" -}}
{{- if or (contains ":" .a) (contains ":" .b) -}}
{{- if eq (lower .a) (lower .b) -}}true{{- end -}}
{{- else -}}
{{- $a := splitList "/" .a -}}
{{- $b := splitList "/" .b -}}
{{- $bits := min (int (index $a 1)) (int (index $b 1)) | int -}}
{{- $divisor := 1 -}}
{{- range until (int (sub 32 $bits)) -}}{{- $divisor = mul $divisor 2 -}}{{- end -}}
{{- $na := 0 -}}{{- range splitList "." (index $a 0) -}}{{- $na = add (mul $na 256) (int .) -}}{{- end -}}
{{- $nb := 0 -}}{{- range splitList "." (index $b 0) -}}{{- $nb = add (mul $nb 256) (int .) -}}{{- end -}}
{{- if eq (div $na $divisor) (div $nb $divisor) -}}true{{- end -}}
{{- end -}}
{{- end -}}
