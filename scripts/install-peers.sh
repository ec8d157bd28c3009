#!/bin/sh
# Installs the tunnels that `make bench-dataplane` compares with, into a directory of their own (Debian and Ubuntu).
# What is there already is left alone; what cannot be had is named and left out.
#
# usage: scripts/install-peers.sh DIR
#
# wireguard-go and nebula come from newer Debian suites than the machine's (bookworm's wireguard-go predates its batching):
# their packages are unpacked into DIR, the machine's own packages stay as they are.
set -eu

dir=$1
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
scripts=$(dirname "$0")
"$scripts/install-deps.sh" iperf peers

# unpack SUITE PACKAGE PROGRAM
unpack() {
    [ -x "$dir/usr/bin/$3" ] && return
    state=$(mktemp -d)
    mkdir -p "$state/lists/partial" "$state/cache/archives/partial"
    keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    echo "deb [signed-by=$keyring] http://deb.debian.org/debian $1 main" >"$state/sources.list"
    set -- "$@" -o "Dir::Etc::sourcelist=$state/sources.list" -o Dir::Etc::sourceparts=/dev/null \
        -o "Dir::State::lists=$state/lists" -o "Dir::Cache=$state/cache" -o APT::Sandbox::User=root
    suite=$1 package=$2
    shift 3
    echo "install-peers: $package from $suite" >&2
    if apt-get "$@" update -qq >"$state/log" 2>&1 &&
        (cd "$state" && apt-get "$@" download "$package" >>"$state/log" 2>&1) &&
        dpkg -x "$state/$package"_*.deb "$dir"; then :; else
        tail -3 "$state/log" >&2
        echo "install-peers: no $package; it is left out" >&2
    fi
    rm -rf "$state"
}

# build CRATE VERSION PROGRAM
build() {
    [ -x "$dir/bin/$3" ] && return
    echo "install-peers: building $1 $2" >&2
    nice -n 15 env CARGO_TARGET_DIR="$dir/build" cargo install --quiet --locked --root "$dir" "$1@$2" ||
        echo "install-peers: no $1; it is left out" >&2
}

unpack bookworm-backports wireguard-go wireguard-go
unpack trixie nebula nebula
build boringtun-cli 0.7.1 boringtun-cli
build gotatun-cli 0.10.2 gotatun
rm -rf "$dir/build"
