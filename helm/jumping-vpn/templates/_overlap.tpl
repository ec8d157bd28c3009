{{- /* The bits of a network's address, as text. Empty when it is not a network. */ -}}
{{- define "jv.bits" -}}
{{- $address := first (splitList "/" .) -}}
{{- if regexMatch "^[0-9.]+/(3[0-2]|[12]?[0-9])$" . -}}
{{- $bytes := splitList "." $address -}}
{{- $bits := "" -}}
{{- range $bytes -}}{{- if and . (le (int .) 255) -}}{{- $bits = printf "%s%08b" $bits (int .) -}}{{- end -}}{{- end -}}
{{- if and (eq (len $bytes) 4) (eq (len $bits) 32) -}}{{- $bits -}}{{- end -}}
{{- else if regexMatch "^[0-9a-fA-F:]*:[0-9a-fA-F:]*/(12[0-8]|1[01][0-9]|[1-9]?[0-9])$" . -}}
{{- $halves := splitList "::" $address -}}
{{- $head := compact (splitList ":" (first $halves)) -}}
{{- $tail := compact (splitList ":" (ternary (last $halves) "" (gt (len $halves) 1))) -}}
{{- $missing := sub 8 (add (len $head) (len $tail)) | int -}}
{{- $zeros := list -}}
{{- if gt (len $halves) 1 -}}{{- range until (max 0 $missing | int) -}}{{- $zeros = append $zeros "0" -}}{{- end -}}{{- end -}}
{{- $digits := dict "0" "0000" "1" "0001" "2" "0010" "3" "0011" "4" "0100" "5" "0101" "6" "0110" "7" "0111" "8" "1000" "9" "1001" "a" "1010" "b" "1011" "c" "1100" "d" "1101" "e" "1110" "f" "1111" -}}
{{- $bits := "" -}}
{{- range concat $head $zeros $tail -}}
{{- range splitList "" (trunc -4 (printf "000%s" (lower .))) -}}{{- $bits = printf "%s%s" $bits (get $digits .) -}}{{- end -}}
{{- end -}}
{{- if and (eq (len $bits) 128) (le (len $halves) 2) -}}{{- $bits -}}{{- end -}}
{{- end -}}
{{- end -}}

{{- /* "true" when two networks overlap. Call with (dict "a" … "b" …). */ -}}
{{- define "jv.overlaps" -}}
{{- $a := include "jv.bits" .a -}}
{{- $b := include "jv.bits" .b -}}
{{- $prefix := min (last (splitList "/" .a) | int) (last (splitList "/" .b) | int) | int -}}
{{- if and (eq (len $a) (len $b)) (eq (trunc $prefix $a) (trunc $prefix $b)) -}}true{{- end -}}
{{- end -}}
