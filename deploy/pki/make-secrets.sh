#!/bin/sh
# Prints Kubernetes Secrets of a release for `tls.kind: existing`, made from a directory of make-pki.sh:
#   make-secrets.sh DIR RELEASE NAMESPACE | kubectl -n NAMESPACE apply -f -
# and then: helm install … --set tls.kind=existing,tls.existingControlSecret=control-tls,tls.existingGatewaySecret=gateway-tls,\
#   tls.existingEtcdSecret=etcd-tls,tls.existingOperatorSecret=operator-tls
set -eu
[ $# -eq 3 ] || { sed -n '2,5s/^# \{0,1\}//p' "$0" >&2; exit 2; }
dir=$1
full=$2-jumping-vpn
case "$2" in *jumping-vpn*) full=$2 ;; esac
namespace=$3
etcd=$full-etcd
members="$etcd,localhost,127.0.0.1"
for i in 0 1 2; do members="$members,$etcd-$i.$etcd.$namespace.svc"; done
control=$full-control
VALIDITY=${VALIDITY:-365d} "$(dirname "$0")/make-pki.sh" "$dir" \
    "control:$full=$control,$control.$namespace.svc,$control-replicas.$namespace.svc,localhost,127.0.0.1${CONTROL_HOSTS:+,$CONTROL_HOSTS}" \
    "gateway:$full-gateway-*" "etcd:$etcd=$members" "operator:$2" >&2
secret() {
    printf -- '---\napiVersion: v1\nkind: Secret\ntype: kubernetes.io/tls\nmetadata: { name: %s-tls, namespace: %s }\ndata:\n' "$1" "$namespace"
    printf '  ca.crt: %s\n' "$(base64 -w0 <"$dir/ca.pem")"
    printf '  tls.crt: %s\n' "$(base64 -w0 <"$dir/$2.pem")"
    printf '  tls.key: %s\n' "$(base64 -w0 <"$dir/$2-key.pem")"
}
secret control "control-$full"
secret gateway "gateway-$full-gateway"
secret etcd "etcd-$etcd"
secret operator "operator-$2"
