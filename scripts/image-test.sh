#!/bin/sh
# Proves the images: builds them from deploy/Dockerfile without any registry, runs each as locked down as the chart does, attaches a
# device inside them, and brings up deploy/compose.yaml: attach, kill a gateway, go on, ownership over gRPC. As root.
#
# Uses the Docker daemon of DOCKER_HOST; without one it starts its own, with a network of its own alone. The base images come from
# mmdebstrap, under the names that the Dockerfile uses; the Rust base is that plus the toolchain and the crates of this machine.
#
#   PROGRAMS=build     compile in the image (PROFILE=dev|lab|release; default dev)
#   PROGRAMS=prebuilt  take the programs of BIN_DIR
#   WORK=DIR           where the daemon and the bases are kept for the next run (default .run/images)
set -eu
cd "$(dirname "$0")/.."

PROGRAMS=${PROGRAMS:-build}
PROFILE=${PROFILE:-dev}
WORK=$(mkdir -p "${WORK:-.run/images}" && cd "${WORK:-.run/images}" && pwd)
name=jv-image-test-$$
export IMAGE=jv-image-test TAG=test ETCD_IMAGE=jv-image-test-etcd:test
export COMPOSE_PROJECT_NAME=$name COMPOSE_FILE=deploy/compose.yaml

say() { printf 'image-test: %s\n' "$*"; }
fail() {
    say "FAILED: $*" >&2
    docker-compose logs --no-color 2>/dev/null | tail -60 >&2 || true
    exit 1
}

daemon=""
cleanup() {
    docker-compose down --volumes --timeout 1 >/dev/null 2>&1 || true
    if [ -n "$daemon" ]; then
        kill "$daemon" 2>/dev/null || true
        wait "$daemon" 2>/dev/null || true
    fi
    rm -rf dist "$WORK/toolchain"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# --- A daemon -----------------------------------------------------------------------------------------------------------------
PATH=/usr/bin:/usr/sbin:/sbin:$PATH
if ! docker info >/dev/null 2>&1; then
    export DOCKER_HOST="unix://$WORK/docker.sock"
    rm -f "$WORK/docker.pid"
    dockerd --data-root "$WORK/docker" --exec-root "$WORK/exec" --pidfile "$WORK/docker.pid" --host "$DOCKER_HOST" \
        --bridge=none --iptables=false --ip6tables=false --ip-forward=false --ip-masq=false >"$WORK/dockerd.log" 2>&1 &
    daemon=$!
    tries=0
    until docker info >/dev/null 2>&1; do
        kill -0 "$daemon" 2>/dev/null || { tail -5 "$WORK/dockerd.log" >&2; fail "dockerd does not start"; }
        tries=$((tries + 1))
        [ "$tries" -lt 120 ] || fail "dockerd does not answer"
        sleep 0.5
    done
fi

# --- Bases --------------------------------------------------------------------------------------------------------------------
exists() { docker image inspect "$1" >/dev/null 2>&1; }
# with_packages NAME PACKAGE...: the slim Debian with more packages.
with_packages() {
    exists "$1" && return
    tag=$1
    shift
    say "making $tag"
    printf 'FROM debian:bookworm-slim\nRUN apt-get update && apt-get install -y --no-install-recommends %s && rm -rf /var/lib/apt/lists/*\n' "$*" |
        docker build --quiet --network=host -t "$tag" - >/dev/null
}
if ! exists debian:bookworm-slim; then
    say "making debian:bookworm-slim"
    mmdebstrap --quiet --variant=minbase bookworm - | docker import - debian:bookworm-slim >/dev/null
fi
with_packages "$ETCD_IMAGE" etcd-server
if [ "$PROGRAMS" = build ] && ! exists rust:1.95-bookworm; then
    with_packages jv-image-test-rust:test gcc libc6-dev ca-certificates protobuf-compiler libprotobuf-dev
    say "adding the toolchain"
    mkdir -p "$WORK/toolchain"
    cp -a "$(rustc --print sysroot)/." "$WORK/toolchain/rust"
    rm -rf "$WORK/toolchain/rust/share"
    mkdir -p "$WORK/toolchain/cargo/registry"
    for part in index cache; do cp -a "${CARGO_HOME:-$HOME/.cargo}/registry/$part" "$WORK/toolchain/cargo/registry/"; done
    cat >"$WORK/toolchain/Dockerfile" <<'BASE'
FROM jv-image-test-rust:test
COPY rust /usr/local
COPY cargo /usr/local/cargo
ENV CARGO_HOME=/usr/local/cargo CARGO_NET_OFFLINE=true
BASE
    docker build --quiet -t rust:1.95-bookworm "$WORK/toolchain" >/dev/null
    rm -rf "$WORK/toolchain"
fi

# --- Images -------------------------------------------------------------------------------------------------------------------
if [ "$PROGRAMS" = prebuilt ]; then
    mkdir -p dist
    for program in jump jumpctl jump-control jump-gateway; do
        install -m755 "${BIN_DIR:?BIN_DIR names the directory of the programs}/$program" dist/
        strip --strip-debug "dist/$program" 2>/dev/null || true
    done
fi
for role in control gateway client; do
    DOCKER_BUILDKIT=1 docker build --quiet --network=host -f deploy/Dockerfile --target "$role" -t "$IMAGE-$role:$TAG" \
        --build-arg PROGRAMS="$PROGRAMS" --build-arg PROFILE="$PROFILE" . >"$WORK/build.log" 2>&1 ||
        { tail -30 "$WORK/build.log" >&2; fail "the $role image does not build"; }
    size=$(docker image inspect --format '{{.Size}}' "$IMAGE-$role:$TAG")
    say "built $role, $((size / 1000000)) MB"
done

# --- Each by itself, as locked down as the chart --------------------------------------------------------------------------------
bare="docker run --rm --network none --cap-drop ALL --read-only"
$bare "$IMAGE-control:$TAG" --version | grep -q '^jump-control ' || fail "control says no version"
$bare --entrypoint jumpctl "$IMAGE-control:$TAG" --version | grep -q '^jumpctl ' || fail "jumpctl says no version"
user=$($bare --entrypoint id "$IMAGE-control:$TAG" -u)
[ "$user" = 65532 ] || fail "control runs as $user"
tun="$bare --cap-add NET_ADMIN --device /dev/net/tun"
$tun "$IMAGE-gateway:$TAG" --version | grep -q '^jump-gateway ' || fail "the gateway says no version"
$tun "$IMAGE-client:$TAG" --version | grep -q '^jump ' || fail "the client says no version"
$tun --entrypoint sh "$IMAGE-gateway:$TAG" -c 'nft -f /usr/share/jumping-vpn/masquerade.nft && nft list ruleset' | grep -q 'masquerade' ||
    fail "the masquerade rules do not load"
# Twice: loading again replaces.
$tun --entrypoint sh "$IMAGE-gateway:$TAG" -c 'nft -f /usr/share/jumping-vpn/masquerade.nft; nft -f /usr/share/jumping-vpn/masquerade.nft' ||
    fail "the masquerade rules do not load twice"
if $tun --user 65532 "$IMAGE-gateway:$TAG" run --node gw1 >/dev/null 2>&1; then fail "a gateway without settings runs"; fi
# finds WHAT CHECKS COMMAND...: the doctor finds these things fine, and says that settings or the enrolment are missing.
finds() {
    what=$1 checks=$2
    shift 2
    if report=$("$@" 2>&1); then fail "the doctor of $what misses nothing: $report"; fi
    for check in $checks; do
        printf '%s' "$report" | grep -q "\"check\":\"$check\",\"level\":\"fine\"" || fail "the doctor of $what on $check: $report"
    done
}
finds control "entropy" $bare "$IMAGE-control:$TAG" doctor --json
finds "the gateway" "tun net-admin udp-offload entropy" $tun "$IMAGE-gateway:$TAG" doctor --json
finds "the client" "tun net-admin udp-offload entropy" $tun "$IMAGE-client:$TAG" --output json doctor
confined="$tun --security-opt no-new-privileges --security-opt seccomp=deploy/seccomp/jump-gateway.json"
finds "the gateway under its seccomp profile" "tun net-admin udp-offload entropy" $confined "$IMAGE-gateway:$TAG" doctor --json

# --- The whole cluster ----------------------------------------------------------------------------------------------------------
# The gateways under their seccomp profile: what it lacks stops them here.
cat >"$WORK/confined.yaml" <<'CONFINED'
version: "3.4"
services:
  gateway-1: &confined
    security_opt: ["no-new-privileges:true", "seccomp:deploy/seccomp/jump-gateway.json"]
  gateway-2: *confined
CONFINED
COMPOSE_FILE=$COMPOSE_FILE:$WORK/confined.yaml
say "bringing up deploy/compose.yaml"
docker-compose up -d >"$WORK/compose.log" 2>&1 || { cat "$WORK/compose.log" >&2; fail "compose does not come up"; }
ask() { docker-compose exec -T device "$@"; }
# until_true SECONDS WHAT COMMAND...
until_true() {
    seconds=$1 what=$2
    shift 2
    end=$(($(date +%s) + seconds))
    until "$@" >/dev/null 2>&1; do
        [ "$(date +%s)" -lt "$end" ] || fail "not in time: $what"
        sleep 0.3
    done
}
attached() { ask jump status --output json | grep -q '"state":"\(ATTACHED\|attached\)"'; }
until_true 180 "the device is attached" attached
session=$(ask jump status --output json | sed -n 's/.*"session_id":"\([^"]*\)".*/\1/p')
# In the cluster, with the settings of the running program, nothing is missing.
examined() {
    docker-compose exec -T "$1" sh -c 'set -- $(tr "\0" " " </proc/1/cmdline); program=$1; shift 2; exec "$program" doctor "$@"' >"$WORK/doctor.log" 2>&1 ||
        { cat "$WORK/doctor.log" >&2; fail "the doctor of $1 finds a problem"; }
}
examined control-1
examined gateway-1
# 2 is "filtered"; the worker inherits it from its supervisor.
docker-compose exec -T gateway-1 grep -q '^Seccomp:[[:space:]]*2$' /proc/1/status || fail "gateway-1 runs without a seccomp filter"
ask jump doctor >"$WORK/doctor.log" 2>&1 || { cat "$WORK/doctor.log" >&2; fail "the doctor of the device finds a problem"; }
owner() { ask jumpctl ownership get "$session" --output json | sed -n 's/.*"node_id":"\([^"]*\)".*/\1/p'; }
first=$(owner)
say "attached; session $session belongs to $first"
case "$first" in gw1) victim=gateway-1 other=gw2 ;; gw2) victim=gateway-2 other=gw1 ;; *) fail "owner '$first'" ;; esac
docker-compose kill "$victim" >/dev/null 2>&1 || fail "cannot kill $victim"
started=$(date +%s%N)
moved() { [ "$(owner)" = "$other" ]; }
until_true 60 "$other owns the session" moved
say "killed $victim; $other owns the session after $((($(date +%s%N) - started) / 1000000)) ms (asked every 0.3 s)"
again=$(ask jump status --output json | sed -n 's/.*"session_id":"\([^"]*\)".*/\1/p')
[ "$again" = "$session" ] || fail "the device has another session: $again"
until_true 30 "the device is attached again" attached
docker-compose kill control-1 >/dev/null 2>&1
ask jumpctl sessions list --output json | grep -q "$session" || fail "the other control replica does not answer"
say "control-1 killed; the other answers. All good"
