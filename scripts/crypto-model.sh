#!/bin/sh
# Verifies the symbolic models below docs/models with Verifpal. Each query's expected answer stands in the model as a comment
# "// expect: pass" or "// expect: fail"; the script exits with 1 when Verifpal answers anything else.
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

failures=0
for model in docs/models/*.vp; do
    out=$(nice "$VERIFPAL" verify "$model" 2>&1) || true
    echo "$out" >"$TOOLS/$(basename "$model").log"
    printf '%s\n' "$out" | python3 scripts/crypto-model-check.py "$model" || failures=$((failures + 1))
done
[ "$failures" -eq 0 ]
