#!/bin/sh
# Routed egress with a real routing daemon: two gateways announce the pool to a router over BGP with BFD, the router spreads flows over
# both, a download runs through the tunnel, and the whole machine of the session's owner is lost. The same TCP connection must end with
# the right bytes. Then the other gateway loses control: its announcement must go with its lease. As root; in namespaces of its own.
# usage: egress-demo.sh BIN_DIR
set -eu
bin=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."
p=jve$$
dir=$(mktemp -d)
pids=""
PATH=/usr/sbin:/sbin:$PATH

say() { printf 'egress-demo: %s\n' "$*"; }
fail() { say "FAILED: $*"; tail -n 3 "$dir"/*.log | cut -c1-300; exit 1; }
cleanup() {
    # shellcheck disable=SC2086
    kill $pids 2>/dev/null || true
    for ns in switch inner ctl gw1 gw2 dev; do ip netns pids "$p-$ns" 2>/dev/null | xargs -r kill -9 2>/dev/null || true; done
    for ns in switch inner ctl gw1 gw2 dev; do ip netns del "$p-$ns" 2>/dev/null || true; done
    rm -rf "$dir"
}
trap cleanup EXIT
trap 'exit 130' INT TERM
in_ns() { ns=$1; shift; ip netns exec "$p-$ns" "$@"; }
# start LOG NAMESPACE COMMAND...
start() { log=$1; shift; in_ns "$@" >"$dir/$log.log" 2>&1 & pids="$pids $!"; }
# until_true SECONDS WHAT COMMAND...
until_true() {
    end=$(($(date +%s) + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do [ "$(date +%s)" -lt "$end" ] || fail "not in time: $what"; sleep 0.1; done
}

# --- Machines and networks: wan 10.90.0.0/24, lan 10.91.0.0/24 -------------------------------------------------------------------
for ns in switch inner ctl gw1 gw2 dev; do ip netns add "$p-$ns"; ip -n "$p-$ns" link set lo up; done
for net in wan lan; do ip -n "$p-switch" link add $net type bridge; ip -n "$p-switch" link set $net up; done
plug() { # plug NAMESPACE NETWORK ADDRESS
    ip -n "$p-switch" link add "$2-$1" type veth peer name "$2" netns "$p-$1"
    ip -n "$p-switch" link set "$2-$1" master "$2" up
    ip -n "$p-$1" addr add "$3/24" dev "$2"
    ip -n "$p-$1" link set "$2" up
}
plug dev wan 10.90.0.100; plug ctl wan 10.90.0.20; plug inner lan 10.91.0.80
for n in 1 2; do
    plug gw$n wan 10.90.0.1$n; plug gw$n lan 10.91.0.1$n
    for key in net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0 net.ipv4.conf.lan.rp_filter=0 \
        net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.lan.send_redirects=0; do in_ns gw$n sysctl -qw $key; done
done
in_ns inner sysctl -qw net.ipv4.fib_multipath_hash_policy=1

# --- The cluster ----------------------------------------------------------------------------------------------------------------
JUMP_CONTROL=$bin/jump-control deploy/pki/make-pki.sh "$dir/pki" control:c1=10.90.0.20 gateway:gw1 gateway:gw2 operator:me >/dev/null
start control ctl "$bin/jump-control" serve --listen 10.90.0.20:7443 --ca "$dir/pki/ca.pem" --cert "$dir/pki/control-c1.pem" \
    --key "$dir/pki/control-c1-key.pem" --store "embedded:$dir/control.redb" --routes 10.91.0.0/24
until_true 60 "control serves" grep -q '"ready"' "$dir/control.log"
for n in 1 2; do
    start gateway-$n gw$n "$bin/jump-gateway" run --node gw$n --listen 10.90.0.1$n:51820 --mesh-listen 10.90.0.1$n:51821 \
        --control 10.90.0.20:7443 --tls-ca "$dir/pki/ca.pem" --tls-certificate "$dir/pki/gateway-gw$n.pem" --tls-key "$dir/pki/gateway-gw$n-key.pem"
    sed "s/10\.91\.0\.11/10.91.0.1$n/g" deploy/egress/bird-gateway.conf >"$dir/bird-gw$n.conf"
    start bird-gw$n gw$n bird -f -c "$dir/bird-gw$n.conf" -s "$dir/bird-gw$n.ctl" -P "$dir/bird-gw$n.pid"
    start announce-gw$n gw$n deploy/egress/announce.sh http://127.0.0.1:9090/readyz pools -s "$dir/bird-gw$n.ctl"
done
start bird-router inner bird -f -c deploy/egress/bird-router.conf -s "$dir/bird-router.ctl" -P "$dir/bird-router.pid"
hops() { ip -n "$p-inner" route show 10.77.0.0/16 | grep -o 'via [0-9.]*' | sort -u | wc -l; }
hops_are() { [ "$(hops)" = "$1" ]; }
until_true 60 "the router has a way through both gateways" hops_are 2
say "the router spreads 10.77.0.0/16 over $(ip -n "$p-inner" route show 10.77.0.0/16 | grep -o 'via [0-9.]*' | tr '\n' ' ')"

ctl() { in_ns ctl "$bin/jumpctl" --control 10.90.0.20:7443 --ca "$dir/pki/ca.pem" --cert "$dir/pki/operator-me.pem" --key "$dir/pki/operator-me-key.pem" "$@"; }
ctl devices enroll-token --no-qr laptop >"$dir/token"
in_ns dev "$bin/jump" --state-dir "$dir/device" enroll --token-file "$dir/token" >/dev/null
start device dev "$bin/jump" --state-dir "$dir/device" up
status() { in_ns dev "$bin/jump" --state-dir "$dir/device" --output json status; }
is_attached() { status | grep -q '"state":"ATTACHED"'; }
until_true 60 "the device is attached" is_attached
owner() { status | sed -n 's/.*"node_id":"\([^"]*\)".*/\1/p'; }

# --- A download, and the loss of the machine that carries it ---------------------------------------------------------------------
cat >"$dir/stream.py" <<'PY'
import hashlib, socket, sys, time
role, size = sys.argv[1], 96 << 20
block = bytes(range(256)) * 256
if role == "server":
    server = socket.create_server(("10.91.0.80", 8080))
    peer, _ = server.accept()
    start = time.monotonic()
    for n in range(size // len(block)):
        peer.sendall(block)
        time.sleep(max(0, start + n * len(block) / (6 << 20) - time.monotonic()))
    peer.close()
else:
    peer = socket.create_connection(("10.91.0.80", 8080))
    digest, got, stall, last = hashlib.sha256(), 0, 0.0, time.monotonic()
    while data := peer.recv(65536):
        now = time.monotonic()
        stall, last = max(stall, now - last), now
        digest.update(data)
        if got < 8 << 20 <= got + len(data):
            print("running", flush=True)
        got += len(data)
    expected = hashlib.sha256(block * (size // len(block))).hexdigest()
    assert got == size and digest.hexdigest() == expected, f"{got} of {size} bytes, or changed ones"
    print(f"whole: {got >> 20} MiB over one connection from {peer.getsockname()[0]}, longest stall {stall:.2f} s", flush=True)
PY
start server inner python3 "$dir/stream.py" server
sleep 0.5
start download dev python3 "$dir/stream.py" client
until_true 60 "the download runs" grep -q running "$dir/download.log"
lost=$(owner)
case "$lost" in gw1) left=gw2 ;; gw2) left=gw1 ;; *) fail "nobody owns the session: '$lost'" ;; esac
say "the download runs through $lost; its machine is lost now"
started=$(date +%s%N)
# First the cables, then everything that ran there.
ip -n "$p-switch" link set "wan-$lost" down
ip -n "$p-switch" link set "lan-$lost" down
ip netns pids "$p-$lost" | xargs -r kill -9 2>/dev/null || true
until_true 10 "the router leaves the lost gateway" hops_are 1
say "the router has left it after $((($(date +%s%N) - started) / 1000000)) ms (BFD)"
until_true 180 "the download ends" grep -Eq 'whole|Error' "$dir/download.log"
grep -q whole "$dir/download.log" || fail "the download broke: $(tail -1 "$dir/download.log")"
say "$(grep whole "$dir/download.log")"
[ "$(owner)" = "$left" ] || fail "$left does not own the session"

# --- A gateway without a lease announces nothing ----------------------------------------------------------------------------------
started=$(date +%s%N)
ip -n "$p-switch" link set wan-ctl down
until_true 30 "a gateway cut off from control withdraws the pool" hops_are 0
say "$left lost control: its announcement went with its lease after $((($(date +%s%N) - started) / 1000000)) ms"
ip -n "$p-switch" link set wan-ctl up
until_true 60 "the announcement comes back" hops_are 1
say "control is back, and so is the announcement. All good"
