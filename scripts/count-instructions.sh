#!/bin/sh
# Prints the data plane's instructions per packet, by callgrind: `make bench-instructions`.
set -eu

bench=$("$1" bench -p jump-gateway --profile lab --locked --bench hotpath --no-run --message-format=json 2>/dev/null |
    sed -n 's/.*"name":"hotpath".*"executable":"\([^"]*\)".*/\1/p')
out=$(mktemp)
trap 'rm -f "$out"' EXIT
for case in up-64 up-1400 up-1400-of-1000-sessions down-64 down-1400 down-1400-of-1000-sessions; do
    text=$(valgrind --tool=callgrind --callgrind-out-file="$out" --collect-atstart=no \
        --toggle-collect='*hotpath*measured*' "$bench" --counted "$case" 2>&1)
    packets=$(echo "$text" | sed -n "s/^$case \([0-9]*\) packets.*/\1/p")
    instructions=$(echo "$text" | sed -n 's/.*Collected : \([0-9]*\).*/\1/p')
    echo "$case: $((instructions / packets)) instructions per packet"
done
