#!/usr/bin/env python3
"""Generates the chart's README table and values.schema.json from values.yaml.

Every value has a `# --` comment above it. `--check` changes nothing and fails when a generated file is stale.
"""

import argparse
import json
import pathlib
import re
import sys

import yaml

CHART = pathlib.Path(__file__).resolve().parent.parent / "jumping-vpn"
DEPLOY = CHART.parent.parent / "deploy"

# What a type alone cannot say. Keys are paths in values.yaml.
CONSTRAINTS = {
    "image.pullPolicy": {"enum": ["Always", "IfNotPresent", "Never"]},
    "network.pools": {"items": {"type": "string", "pattern": "/"}, "minItems": 1, "maxItems": 2},
    "network.mtu": {"minimum": 1280, "maximum": 9000},
    "network.mtuMax": {"minimum": 1280, "maximum": 9000},
    "policy.sessionLifetime": {"pattern": "^[0-9]+(ms|s|m|h)$"},
    "policy.recoveryWindow": {"pattern": "^[0-9]+(ms|s|m|h)$"},
    "policy.switchCooldown": {"pattern": "^[0-9]+(ms|s|m|h)$"},
    "policy.switchesPerMinute": {"minimum": 1, "maximum": 600},
    "lease.ttlSeconds": {"minimum": 2, "maximum": 60},
    "control.replicas": {"minimum": 1},
    "control.service.type": {"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
    "gateway.kind": {"enum": ["Deployment", "DaemonSet"]},
    "gateway.replicas": {"minimum": 1},
    "gateway.service.type": {"enum": ["NodePort", "LoadBalancer", "ClusterIP"]},
    "gateway.service.externalTrafficPolicy": {"enum": ["Local", "Cluster"]},
    "gateway.service.nodePort": {"minimum": 0, "maximum": 32767},
    "rebalance.movesPerSecond": {"minimum": 0, "maximum": 1000},
    "rebalance.tolerancePercent": {"minimum": 0, "maximum": 100},
    "gateway.drainDeadlineSeconds": {"minimum": 1},
    "gateway.autoscaling.minReplicas": {"minimum": 1},
    "gateway.autoscaling.maxReplicas": {"minimum": 1},
    "gateway.autoscaling.targetSessions": {"minimum": 0},
    "gateway.autoscaling.targetCPUUtilization": {"minimum": 1, "maximum": 100},
    "store.kind": {"enum": ["etcd-bundled", "etcd-external", "embedded"]},
    "tls.kind": {"enum": ["job", "cert-manager", "existing"]},
    "tls.validity": {"pattern": "^[0-9]+(d|h)$"},
    "egress.kind": {"enum": ["masquerade", "routed"]},
    "egress.holdSeconds": {"minimum": 0},
    "tls.issuerRef.kind": {"enum": ["Issuer", "ClusterIssuer"]},
    "gateway.transports.tcp.servicePort": {"minimum": 0, "maximum": 65535},
    "gateway.transports.tls.servicePort": {"minimum": 0, "maximum": 65535},
    "gateway.transports.quic.servicePort": {"minimum": 0, "maximum": 65535},
    "audit.sinks": {
        "items": {
            "type": "object",
            "required": ["kind", "name"],
            "properties": {
                "kind": {"enum": ["file", "syslog", "otlp", "http"]},
                "name": {"type": "string", "pattern": "^[a-z0-9-]{1,32}$"},
            },
        }
    },
    "audit.volume.kind": {"enum": ["none", "emptyDir", "claim"]},
    "audit.volume.sizeLimitMiB": {"minimum": 1},
    "logFormat": {"enum": ["json", "human"]},
}
# Objects whose keys belong to Kubernetes or to the operator.
OPEN = re.compile(r"(annotations|labels|resources|nodeSelector|podAnnotations)$")


def comments(text: str) -> dict[str, str]:
    """Maps a value's path to its `# --` comment."""
    found, stack, pending = {}, [], []
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("# --"):
            pending = [stripped[4:].strip()]
        elif stripped.startswith("#") and pending:
            pending.append(stripped[1:].strip())
        elif match := re.match(r"^( *)([A-Za-z][A-Za-z0-9-]*):", line):
            depth = len(match[1]) // 2
            stack = stack[:depth] + [match[2]]
            if pending:
                found[".".join(stack)] = " ".join(pending)
            pending = []
    return found


def schema(value, path: str, notes: dict[str, str]) -> dict:
    """The JSON schema of one value."""
    if isinstance(value, bool):
        node = {"type": "boolean"}
    elif isinstance(value, int):
        node = {"type": "integer"}
        if re.search(r"[pP]ort$", path) and path not in CONSTRAINTS:
            node |= {"minimum": 1, "maximum": 65535}
    elif isinstance(value, list):
        node = {"type": "array"}
        if not path.endswith("tolerations"):
            node["items"] = {"type": "string"}
    elif isinstance(value, dict):
        node = {"type": "object"}
        if not OPEN.search(path):
            node["properties"] = {
                key: schema(inner, f"{path}.{key}" if path else key, notes) for key, inner in value.items()
            }
            node["additionalProperties"] = False
    else:
        node = {"type": "string"}
    if path in notes:
        node["description"] = notes[path]
    return node | CONSTRAINTS.get(path, {})


def rows(value, path: str, notes: dict[str, str]):
    """One README row a leaf."""
    if isinstance(value, dict) and value and not OPEN.search(path):
        for key, inner in value.items():
            yield from rows(inner, f"{path}.{key}" if path else key, notes)
    else:
        default = json.dumps(value).replace("|", "\\|")
        yield f"| `{path}` | `{default}` | {notes.get(path, '')} |"


def generated() -> dict[str, bytes]:
    """What every generated file must hold.

    Raises SystemExit when a value has no comment.
    """
    text = (CHART / "values.yaml").read_text()
    values, notes = yaml.safe_load(text), comments(text)
    missing = [row.split("`")[1] for row in rows(values, "", notes) if row.endswith("|  |")]
    if missing:
        raise SystemExit(f"values without a `# --` comment: {', '.join(missing)}")

    top = schema(values, "", notes)
    # Helm passes subchart and global values alongside.
    top["properties"]["global"] = {"type": "object"}
    top = {"$schema": "http://json-schema.org/draft-07/schema#", "title": "jumping-vpn values"} | top
    template = (CHART / "README.md.tmpl").read_text()
    table = "| Value | Default | What it is |\n|---|---|---|\n" + "\n".join(rows(values, "", notes))
    files = {
        "values.schema.json": (json.dumps(top, indent=2) + "\n").encode(),
        "README.md": template.replace("{{ values }}", table).encode(),
        # Helm packs only what is below the chart.
        "files/rules.yaml": (DEPLOY / "prometheus/rules.yaml").read_bytes(),
        "files/masquerade.nft": (DEPLOY / "egress/masquerade.nft").read_bytes(),
    }
    for dashboard in sorted((DEPLOY / "dashboards").glob("*.json")):
        files[f"files/dashboards/{dashboard.name}"] = dashboard.read_bytes()
    return files


def stale() -> list[str]:
    """The generated files that are not as they must be."""
    return [
        name for name, new in generated().items() if not (CHART / name).exists() or (CHART / name).read_bytes() != new
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail when a generated file is stale; change nothing")
    check = parser.parse_args().check
    if check:
        if old := stale():
            print(f"stale, run make helm-generate: {', '.join(old)}")
        return 1 if old else 0
    files = generated()
    for name in stale():
        (CHART / name).parent.mkdir(parents=True, exist_ok=True)
        (CHART / name).write_bytes(files[name])
    return 0


if __name__ == "__main__":
    sys.exit(main())
