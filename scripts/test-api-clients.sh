#!/bin/sh
# Runs the example client against a real control replica, and asks it by reflection what it serves, as grpcurl does.
# usage: test-api-clients.sh BIN_DIR PYTHON
set -eu
cd "$(dirname "$0")/.."
bin=$1
python=$2
dir=$(mktemp -d)
control=""
cleanup() {
    [ -z "$control" ] || { kill "$control" 2>/dev/null && wait "$control" 2>/dev/null; } || true
    rm -rf "$dir"
}
trap cleanup EXIT
JUMP_CONTROL=$bin/jump-control deploy/pki/make-pki.sh "$dir" control:c1=127.0.0.1,localhost operator:me reader:you >/dev/null
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$bin/jump-control" serve --listen "127.0.0.1:$port" --ca "$dir/ca.pem" --cert "$dir/control-c1.pem" --key "$dir/control-c1-key.pem" \
    --store "embedded:$dir/control.redb" 2>"$dir/control.log" &
control=$!
end=$(($(date +%s) + 60))
until grep -q '"ready"' "$dir/control.log"; do
    kill -0 "$control" 2>/dev/null || { cat "$dir/control.log" >&2; exit 1; }
    [ "$(date +%s)" -lt "$end" ] || { echo "control is not ready" >&2; exit 1; }
    sleep 0.1
done
"$python" examples/python/jump_client.py --control "127.0.0.1:$port" --ca "$dir/ca.pem" --cert "$dir/reader-you.pem" --key "$dir/reader-you-key.pem" |
    grep -qx '0 nodes' || { echo "the example client does not get the list of nodes" >&2; exit 1; }
"$python" - "$port" "$dir" <<'PY'
import pathlib, sys
import grpc
from grpc_reflection.v1alpha import reflection_pb2
# The v1 service has the same messages on the wire as v1alpha.
port, directory = sys.argv[1], pathlib.Path(sys.argv[2])
read = lambda name: (directory / name).read_bytes()
credentials = grpc.ssl_channel_credentials(read("ca.pem"), read("operator-me-key.pem"), read("operator-me.pem"))
with grpc.secure_channel(f"127.0.0.1:{port}", credentials) as channel:
    ask = channel.stream_stream(
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    answer = next(iter(ask(iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=10)))
    served = {service.name for service in answer.list_services_response.service}
needed = {f"jump.control.v1.{name}Service" for name in ("Gateway", "Session", "Ownership", "Node", "Device")}
missing = needed - served
sys.exit(f"reflection does not list {missing}" if missing else 0)
PY
echo "api-clients: the example client and reflection work"
