#!/bin/sh
# Installs what the build, the demo and the tests need and the machine lacks (Debian and Ubuntu). Quiet and without
# network when nothing is missing.
#
# usage: scripts/install-deps.sh GROUP...
#   build     protoc with its well-known types, a C compiler for the cryptography library
#   demo      network namespaces
#   iperf     the traffic generator and the offload switches of the forwarding benchmark
#   peers     what the comparison with other tunnels needs besides them: OpenVPN, wg, ping
#   callgrind valgrind, for instruction counts
#   etcd      the etcd server of the three-node store, and etcdctl
#   embedded  nothing (the store is part of jump-control)
#   test      packet capture, for checks that a paused gateway forwards nothing; the syslog server of the audit tests; strace
#   egress    the routing daemon of the egress demo
#   images    a container engine, and what makes base images without a registry
#   helm      Python's virtual environments, for the chart's test
#   observability  the syslog server, strace, and promtool for the alert rules
set -eu

packages=""

# need PACKAGE TEST...: asks for the package unless the test succeeds.
need() {
    package=$1
    shift
    "$@" >/dev/null 2>&1 || packages="$packages $package"
}

# rsyslog with its TLS driver.
need_syslog() {
    need rsyslog command -v rsyslogd
    need rsyslog-gnutls sh -c 'ls /usr/lib/*/rsyslog/lmnsd_gtls.so /usr/lib/rsyslog/lmnsd_gtls.so 2>/dev/null | grep -q .'
}

# Server binaries live in sbin directories that an ordinary PATH may lack.
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"
export PATH

for group in "$@"; do
    case "$group" in
        build)
            need protobuf-compiler command -v protoc
            need libprotobuf-dev sh -c 'for d in /usr /usr/local; do
                [ -f "$d/include/google/protobuf/timestamp.proto" ] && exit 0; done; exit 1'
            need gcc sh -c 'command -v cc || command -v gcc'
            need libc6-dev test -f /usr/include/stdlib.h
            command -v cargo >/dev/null 2>&1 || {
                echo "install-deps: cargo is missing; install Rust from https://rustup.rs and try again" >&2
                exit 1
            }
            ;;
        demo)
            need iproute2 command -v ip
            ;;
        iperf)
            need iperf3 command -v iperf3
            need ethtool command -v ethtool
            ;;
        peers)
            need openvpn command -v openvpn
            need wireguard-tools command -v wg
            need iputils-ping command -v ping
            need openssl command -v openssl
            ;;
        callgrind)
            need valgrind command -v valgrind
            ;;
        etcd)
            need etcd-server command -v etcd
            need etcd-client command -v etcdctl
            ;;
        embedded) ;;
        test)
            need tcpdump command -v tcpdump
            need nftables command -v nft
            need strace command -v strace
            need_syslog
            ;;
        egress)
            need bird2 command -v birdc
            need curl command -v curl
            need python3 command -v python3
            ;;
        images)
            need docker.io command -v dockerd
            need docker-compose command -v docker-compose
            need mmdebstrap command -v mmdebstrap
            ;;
        helm)
            need python3-venv python3 -c 'import ensurepip, venv'
            ;;
        observability)
            need nftables command -v nft
            need strace command -v strace
            need_syslog
            need prometheus command -v promtool
            ;;
        *)
            echo "install-deps: unknown group '$group'; the groups are build, demo, iperf, peers, callgrind, etcd, embedded, test, egress, images, helm and observability" >&2
            exit 2
            ;;
    esac
done

[ -n "$packages" ] || exit 0

if [ "$(id -u)" -ne 0 ]; then
    echo "install-deps: missing:$packages; run as root: apt-get install$packages" >&2
    exit 1
fi
if ! command -v apt-get >/dev/null 2>&1; then
    echo "install-deps: missing:$packages (Debian names), and there is no apt-get; install them by hand" >&2
    exit 1
fi

echo "install-deps: installing$packages" >&2
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# The etcd package starts a server of its own; the tests bring theirs.
install() {
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -qq --no-install-recommends $packages >"$log" 2>&1
}
if ! install; then
    { apt-get update -qq >"$log" 2>&1 && install; } || {
        cat "$log" >&2
        echo "install-deps: apt-get could not install$packages" >&2
        exit 1
    }
fi
