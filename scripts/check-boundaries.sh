#!/bin/sh
# Checks the boundaries between the crates (ARCHITECTURE.md): what each may depend on, directly or not, and that the
# pure crates read no clock, socket, file or environment. Prints every violation; exits with 1 if there is one.
set -eu
cd "$(dirname "$0")/.."

CARGO=${CARGO:-cargo}
failures=0

fail() {
    echo "check-boundaries: $1" >&2
    failures=$((failures + 1))
}

# free_of CRATE FORBIDDEN...: no forbidden crate is anywhere below CRATE in a normal build.
free_of() {
    crate=$1
    shift
    below=$("$CARGO" tree --locked --quiet -p "$crate" --edges normal --prefix none --format '{p}' | awk '{ print $1 }' | sort -u)
    for forbidden in "$@"; do
        if printf '%s\n' "$below" | grep -qx "$forbidden"; then
            fail "$crate depends on $forbidden ('$CARGO tree -p $crate -e normal -i $forbidden' shows how)"
        fi
    done
}

# source_free_of DIRECTORY PATTERN WHAT: no line of production code in DIRECTORY matches. Test modules and files are
# left out: by convention the test module is the end of a file.
source_free_of() {
    hits=$(find "$1" -name '*.rs' ! -name 'tests.rs' ! -name 'proptests.rs' ! -path '*/tests/*' | sort | while read -r file; do
        awk -v file="$file" -v pattern="$2" '
            /^#\[cfg\(test\)\]/ { exit }
            $0 !~ /^[ \t]*\/\// && $0 ~ pattern { print file ":" FNR ": " $0 }
        ' "$file"
    done)
    [ -z "$hits" ] || fail "$3:
$hits"
}

SOCKETS_AND_RUNTIME="tokio mio socket2 quinn quinn-udp tun-rs rtnetlink hyper tonic etcd-client redb"
# shellcheck disable=SC2086
free_of jump-crypto $SOCKETS_AND_RUNTIME jump-proto jump-session jump-transport jump-telemetry jump-control jump-gateway jump-client
# shellcheck disable=SC2086
free_of jump-session $SOCKETS_AND_RUNTIME jump-proto jump-transport jump-telemetry jump-control jump-gateway jump-client
free_of jump-proto etcd-client redb tun-rs quinn jump-transport jump-telemetry jump-control jump-gateway jump-client
free_of jump-transport jump-session jump-proto jump-telemetry jump-control jump-gateway jump-client etcd-client redb tonic
free_of jump-telemetry jump-proto jump-transport jump-control jump-gateway jump-client etcd-client redb
free_of jump-doctor jump-session jump-proto jump-transport jump-telemetry jump-control jump-gateway jump-client tonic tokio
free_of jump-control jump-transport jump-gateway jump-client
free_of jump-gateway jump-control jump-client etcd-client redb
free_of jump-client jump-control jump-gateway etcd-client redb

for crate in crypto session; do
    grep -qx '#!\[forbid(unsafe_code)\]' "crates/$crate/src/lib.rs" ||
        fail "crates/$crate/src/lib.rs lacks #![forbid(unsafe_code)]"
    source_free_of "crates/$crate/src" 'Instant::now|SystemTime::now|std::thread|std::fs|std::env|std::process|(Tcp|Udp)(Stream|Socket|Listener)|tokio::' \
        "crates/$crate is pure, yet its code reads a clock, a socket, a file, the environment or a thread"
done

# One provider of cryptography for TLS and records, one gRPC stack.
all=$("$CARGO" tree --locked --quiet --workspace --edges normal --prefix none --format '{p}' | awk '{ print $1, $2 }' | sort -u)
printf '%s\n' "$all" | grep -q '^aws-lc' && fail "aws-lc-rs is in the tree; ring is the one provider"
for single in tonic prost rustls; do
    versions=$(printf '%s\n' "$all" | grep -c "^$single v" || true)
    [ "$versions" -le 1 ] || fail "$versions versions of $single are in the tree"
done

[ "$failures" -eq 0 ] || exit 1
echo "check-boundaries: every crate keeps to its side"
