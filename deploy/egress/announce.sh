#!/bin/sh
# Announces the inner pools through BIRD while the gateway on this machine is ready (lease held, pools routed, not draining), and
# withdraws them when it is not. BIRD's BFD covers the loss of the whole machine. Run it beside the gateway:
#   announce.sh [READYZ_URL] [BIRD_PROTOCOL] [BIRDC_OPTIONS...]
# The protocol is the `static` one of bird-gateway.conf. A gateway relays packets for at least drain.linger (500 ms) after its last
# session has moved; looking every 100 ms withdraws well before that.
set -eu
url=${1:-http://127.0.0.1:9090/readyz}
protocol=${2:-pools}
[ $# -ge 2 ] && shift 2 || set --
announced=unknown
while :; do
    if curl --silent --fail --max-time 1 --output /dev/null "$url"; then wanted=enable; else wanted=disable; fi
    if [ "$wanted" != "$announced" ]; then
        birdc "$@" "$wanted" "$protocol" >/dev/null && announced=$wanted && echo "announce: $wanted $protocol"
    fi
    sleep 0.1
done
