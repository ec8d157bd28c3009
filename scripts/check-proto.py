#!/usr/bin/env python3
"""Checks the gRPC contract: style (as buf STANDARD), and that nothing changed that an older peer relies on.

Compares with proto/contract.binpb, the descriptor set of the last release. `--accept` writes it anew: do that at a release, or for a
change that is compatible and meant.
"""

import argparse
import pathlib
import re
import sys
import tempfile

import grpc_tools
from google.protobuf import descriptor_pb2
from grpc_tools import protoc

ROOT = pathlib.Path(__file__).resolve().parent.parent / "proto"
BASELINE = ROOT / "contract.binpb"
SNAKE, PASCAL, UPPER = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*$"), re.compile(r"([A-Z][a-z0-9]*)+$"), re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)*$")


def compile_all() -> descriptor_pb2.FileDescriptorSet:
    """Our files, with comments, without those of protobuf itself."""
    files = sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("jump/**/*.proto"))
    well_known = pathlib.Path(grpc_tools.__file__).parent / "_proto"
    with tempfile.NamedTemporaryFile(suffix=".binpb") as out:
        arguments = ["protoc", f"-I{ROOT}", f"-I{well_known}", "--include_source_info", f"--descriptor_set_out={out.name}", *files]
        if protoc.main(arguments):
            raise SystemExit("the contract does not compile")
        return descriptor_pb2.FileDescriptorSet.FromString(pathlib.Path(out.name).read_bytes())


def messages(file):
    """Every message with its full name, nested ones too."""
    pending = [(file.package, m) for m in file.message_type]
    while pending:
        prefix, message = pending.pop()
        name = f"{prefix}.{message.name}"
        yield name, message
        pending += [(name, m) for m in message.nested_type]


def enums(file):
    """Every enum with its full name."""
    yield from ((f"{file.package}.{e.name}", e) for e in file.enum_type)
    for name, message in messages(file):
        yield from ((f"{name}.{e.name}", e) for e in message.enum_type)


def style(files):
    """What buf's STANDARD rules would say."""
    requests = {}
    for file in files:
        where = file.name
        if file.package.replace(".", "/") != str(pathlib.PurePath(where).parent):
            yield f"{where}: package {file.package} does not match its directory"
        if not re.search(r"\.v[0-9]+$", file.package):
            yield f"{where}: package {file.package} has no version"
        for name, message in messages(file):
            if not PASCAL.match(message.name):
                yield f"{where}: message {name} is not PascalCase"
            yield from (f"{where}: field {name}.{f.name} is not lower_snake_case" for f in message.field if not SNAKE.match(f.name))
            yield from (f"{where}: oneof {name}.{o.name} is not lower_snake_case" for o in message.oneof_decl if not SNAKE.match(o.name.lstrip("_")))
        for name, enum in enums(file):
            prefix = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", enum.name).upper() + "_"
            if not enum.value[0].name == f"{prefix}UNSPECIFIED" or enum.value[0].number != 0:
                yield f"{where}: the zero of enum {name} is not {prefix}UNSPECIFIED"
            for value in enum.value:
                if not UPPER.match(value.name) or not value.name.startswith(prefix):
                    yield f"{where}: enum value {value.name} does not begin with {prefix}"
        for service in file.service:
            if not service.name.endswith("Service"):
                yield f"{where}: service {service.name} does not end in Service"
            for method in service.method:
                for kind, actual in (("Request", method.input_type), ("Response", method.output_type)):
                    if actual != f".{file.package}.{method.name}{kind}":
                        yield f"{where}: {service.name}.{method.name} does not use {method.name}{kind}"
                    if requests.setdefault(actual, f"{service.name}.{method.name}") != f"{service.name}.{method.name}":
                        yield f"{where}: {actual} is used by {requests[actual]} and by {service.name}.{method.name}"


def facts(files) -> dict:
    """Everything that a peer relies on, by name."""
    found = {}
    for file in files:
        for name, message in messages(file):
            reserved = {n for r in message.reserved_range for n in range(r.start, min(r.end, r.start + 1000))}
            found["message " + name] = "gone"
            found |= {f"field {name} {n}": "reserved" for n in reserved}
            for field in message.field:
                kind = field.type_name or descriptor_pb2.FieldDescriptorProto.Type.Name(field.type)
                label = "repeated" if field.label == field.LABEL_REPEATED else "singular"
                oneof = message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") and not field.proto3_optional else ""
                found[f"field {name} {field.number}"] = f"{field.name} {label} {kind} {oneof}".strip()
        for name, enum in enums(file):
            found |= {f"enum value {name} {v.number}": v.name for v in enum.value}
        for service in file.service:
            for m in service.method:
                found[f"rpc {file.package}.{service.name}.{m.name}"] = f"{m.client_streaming} {m.input_type} {m.server_streaming} {m.output_type}"
    return found


def breaking(old: dict, new: dict):
    """What an older peer would stumble over."""
    for name, was in old.items():
        now = new.get(name)
        if now is None:
            yield f"{name} ({was}) is gone: reserve its number instead" if name.startswith("field") else f"{name} is gone"
        elif now != was and not (name.startswith("field") and now == "reserved"):
            yield f"{name} was {was!r} and is {now!r}"


def self_test(files):
    """A check that finds nothing in a broken contract is broken itself."""
    copy = [descriptor_pb2.FileDescriptorProto.FromString(f.SerializeToString()) for f in files]
    service = next(f for f in copy if f.service)
    message = next(m for m in service.message_type if len(m.field) > 1)
    message.field[0].number = 999
    message.field[1].name = "CamelCase"
    service.service[0].method[0].server_streaming ^= True
    if len(list(breaking(facts(files), facts(copy)))) < 3 or not any("CamelCase" in s for s in style(copy)):
        raise SystemExit("check-proto: it does not find a renumbered field, a renamed field and a changed method")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--accept", action="store_true", help="write the baseline anew")
    accept = parser.parse_args().accept
    compiled = compile_all()
    self_test(compiled.file)
    problems = list(style(compiled.file))
    if accept:
        for file in compiled.file:
            file.ClearField("source_code_info")
        BASELINE.write_bytes(compiled.SerializeToString(deterministic=True))
    old = descriptor_pb2.FileDescriptorSet.FromString(BASELINE.read_bytes())
    problems += breaking(facts(old.file), facts(compiled.file))
    for problem in problems:
        print(problem)
    print(f"check-proto: {len(compiled.file)} files, {len(facts(compiled.file))} facts, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
