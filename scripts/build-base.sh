#!/bin/sh
# Builds the programs of another revision, for `make test-upgrade`, beside what is already built. Prints their directory.
# usage: build-base.sh REVISION PROFILE TARGET_DIR
set -eu
cd "$(dirname "$0")/.."
commit=$(git rev-parse --verify --quiet "$1^{commit}") || { echo "build-base: there is no revision $1" >&2; exit 2; }
profile=$2
# The build happens in another directory.
target=$(mkdir -p "$3" && cd "$3" && pwd)
out=$target/base/$commit-$profile
if [ ! -x "$out/jumpctl" ]; then
    source=$(mktemp -d)
    trap 'git worktree remove --force "$source/tree" 2>/dev/null || true; rm -rf "$source"' EXIT
    git worktree add --detach --quiet "$source/tree" "$commit"
    (cd "$source/tree" && CARGO_TARGET_DIR="$target/base/target" cargo build --workspace --bins --locked --profile "$profile") >&2
    case $profile in dev) built=debug ;; *) built=$profile ;; esac
    mkdir -p "$out"
    for program in jump-control jump-gateway jump jumpctl; do cp "$target/base/target/$built/$program" "$out/"; done
fi
cd "$out" && pwd
