#!/bin/sh
# Builds the release twice from the same commit, in two directories of different names, and compares every program byte for
# byte. What differs between machines is taken out: paths are remapped, and the time is the commit's.
set -eu
cd "$(dirname "$0")/.."

commit=$(git rev-parse HEAD)
work=$(mktemp -d)
trap 'git worktree prune; rm -rf "$work"' EXIT
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct "$commit")
export SOURCE_DATE_EPOCH

for at in first second-with-a-longer-name; do
    git worktree add --detach --quiet "$work/$at" "$commit"
    (
        cd "$work/$at"
        # The registry's directory may differ as well as the tree's.
        RUSTFLAGS="--remap-path-prefix=$work/$at=/build --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo" \
            CARGO_TARGET_DIR="$work/$at/target" cargo build --release --locked --quiet --bins \
            -p jump-control -p jump-gateway -p jump-client
    )
done

status=0
for program in jump-control jump-gateway jump jumpctl; do
    one=$(sha256sum <"$work/first/target/release/$program")
    two=$(sha256sum <"$work/second-with-a-longer-name/target/release/$program")
    if [ "$one" = "$two" ]; then
        echo "same       $program ${one%% *}"
    else
        echo "DIFFERENT  $program ${one%% *} ${two%% *}"
        status=1
    fi
done
for at in first second-with-a-longer-name; do git worktree remove --force "$work/$at"; done
exit $status
