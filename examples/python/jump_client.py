#!/usr/bin/env python3
"""Asks a Jumping VPN cluster over gRPC: nodes, sessions, and who owns a session. An example for other programs.

The stubs are generated from the .proto files at the start; a real program would do that in its build:
  python -m grpc_tools.protoc -Iproto --python_out=gen --grpc_python_out=gen proto/jump/control/v1/*.proto
"""

import argparse
import importlib
import pathlib
import sys
import tempfile

import grpc
import grpc_tools
from grpc_tools import protoc

PROTO = pathlib.Path(__file__).resolve().parent.parent.parent / "proto"


def stubs():
    """Generates and imports the modules of jump.control.v1."""
    out = tempfile.mkdtemp(prefix="jump-stubs-")
    well_known = pathlib.Path(grpc_tools.__file__).parent / "_proto"
    files = [str(p.relative_to(PROTO)) for p in (PROTO / "jump/control/v1").glob("*.proto")]
    if protoc.main(["protoc", f"-I{PROTO}", f"-I{well_known}", f"--python_out={out}", f"--grpc_python_out={out}", *files]):
        raise SystemExit("cannot generate the stubs")
    sys.path.insert(0, out)
    return importlib.import_module("jump.control.v1.operator_pb2"), importlib.import_module("jump.control.v1.operator_pb2_grpc")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--control", default="localhost:7443", help="host:port of a control replica")
    parser.add_argument("--ca", default="ca.pem")
    parser.add_argument("--cert", default="operator-me.pem", help="certificate of an operator or reader")
    parser.add_argument("--key", default="operator-me-key.pem")
    parser.add_argument("session", nargs="?", help="follow the owner of this session; without it, list nodes and sessions")
    arguments = parser.parse_args()

    messages, services = stubs()
    read = lambda path: pathlib.Path(path).read_bytes()  # noqa: E731
    credentials = grpc.ssl_channel_credentials(read(arguments.ca), read(arguments.key), read(arguments.cert))
    with grpc.secure_channel(arguments.control, credentials) as channel:
        if arguments.session:
            ownership = services.OwnershipServiceStub(channel)
            request = messages.WatchOwnershipRequest(session_id=arguments.session)
            for change in ownership.WatchOwnership(request):
                print(change, flush=True)
            return
        nodes = services.NodeServiceStub(channel).ListNodes(messages.ListNodesRequest(), timeout=10)
        print(f"{len(nodes.nodes)} nodes")
        for node in nodes.nodes:
            print(f"  {node.node_id}")
        page = ""
        while True:
            request = messages.ListSessionsRequest(page_size=500, page_token=page)
            answer = services.SessionServiceStub(channel).ListSessions(request, timeout=10)
            for session in answer.sessions:
                print(f"  session {session.session_id}")
            page = answer.next_page_token
            if not page:
                break


if __name__ == "__main__":
    main()
