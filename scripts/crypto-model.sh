#!/bin/sh
# Verifies the symbolic model docs/models/attach.vp with Verifpal, which it builds on first use. Arguments go to "verifpal verify".
set -eu
cd "$(dirname "$0")/.."

VERSION=1.5.0
CARGO=${CARGO:-cargo}
TOOLS=${JUMP_TOOLS_DIR:-${CARGO_TARGET_DIR:-target}/tools}
VERIFPAL=$TOOLS/bin/verifpal

if [ ! -x "$VERIFPAL" ]; then
    echo "crypto-model: building verifpal $VERSION (some minutes)" >&2
    CARGO_TARGET_DIR=$TOOLS/build nice "$CARGO" install --locked --ignore-rust-version --quiet --root "$TOOLS" "verifpal@$VERSION"
    rm -rf "$TOOLS/build"
fi

exec nice python3 scripts/crypto-model.py "$VERIFPAL" "$TOOLS/models" "$@"
