#!/bin/sh
# Prints systemd's exposure score of each unit (0 is best, 10 is open) and fails above the bound that the unit can keep.
set -eu
cd "$(dirname "$0")/../deploy/systemd"
command -v systemd-analyze >/dev/null || { echo "systemd-analyze is missing: apt-get install systemd" >&2; exit 1; }
# In tenths. The gateway and the client need CAP_NET_ADMIN, the device file and netlink.
status=0
for pair in jump-control.service:15 jump-gateway.service:25 jump.service:25; do
    unit=${pair%:*}
    threshold=${pair#*:}
    table=$(systemd-analyze security --offline=true --threshold="$threshold" --no-pager "./$unit") || status=1
    printf '%s (bound %s.%s)\n' "$(printf '%s\n' "$table" | tail -1)" "$((threshold / 10))" "$((threshold % 10))"
done
exit $status
