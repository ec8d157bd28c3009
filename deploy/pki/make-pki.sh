#!/bin/sh
# Certificates for a cluster without cert-manager: a CA, and one certificate for each part. What exists is kept, so it can run
# again to add a part; delete a certificate's file to have it issued anew.
#
# usage: make-pki.sh DIR PART...
#   control:NAME=HOST[,HOST...]   a control replica, with the names and addresses at which it is reached
#   gateway:NAME                  a gateway; NAME is its `node` setting, or PREFIX-* for nodes that share the certificate
#   etcd:NAME=HOST[,HOST...]      an etcd member; control's client certificate for etcd too
#   operator:NAME, reader:NAME    a person with jumpctl
# example: make-pki.sh pki control:c1=10.0.0.1,vpn.example gateway:gw1 gateway:gw2 operator:me
#
# Keep ca-key.pem off the machines that run the parts. JUMP_CONTROL names the program (default: jump-control on the PATH),
# VALIDITY how long certificates are valid (default: 90d).
set -eu
[ $# -ge 2 ] || { sed -n '2,13s/^# \{0,1\}//p' "$0" >&2; exit 2; }
program=${JUMP_CONTROL:-jump-control}
dir=$1
shift
[ -f "$dir/ca-key.pem" ] || "$program" pki init --dir "$dir"
for part in "$@"; do
    role=${part%%:*}
    rest=${part#*:}
    name=${rest%%=*}
    hosts=""
    case "$rest" in *=*) hosts=${rest#*=} ;; esac
    stem=$(printf %s "$role-$name" | sed 's/\*$//; s/-$//')
    [ -f "$dir/$stem.pem" ] && continue
    set -- pki issue --dir "$dir" --role "$role" --name "$name" --validity "${VALIDITY:-90d}"
    for host in $(printf %s "$hosts" | tr , ' '); do
        set -- "$@" --host "$host"
    done
    "$program" "$@"
done
