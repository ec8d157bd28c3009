#!/usr/bin/env python3
"""Prints a CycloneDX bill of materials of the programs: every crate that Cargo.lock pins for them, with licence and checksum."""

import json
import os
import pathlib
import subprocess
import tomllib

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAMS = ["jump-control", "jump-gateway", "jump-client"]


def main():
    cargo = os.environ.get("CARGO", "cargo")
    command = [cargo, "metadata", "--format-version=1", "--locked", "--filter-platform=x86_64-unknown-linux-gnu"]
    metadata = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout)
    lock = tomllib.loads((ROOT / "Cargo.lock").read_text())
    checksums = {(p["name"], p["version"]): p.get("checksum") for p in lock["package"]}
    packages = {p["id"]: p for p in metadata["packages"]}
    nodes = {n["id"]: n for n in metadata["resolve"]["nodes"]}

    # What the programs are made of: not what only their tests or builds need.
    pending = [i for i, p in packages.items() if p["name"] in PROGRAMS]
    inside = set()
    while pending:
        here = pending.pop()
        if here not in inside:
            inside.add(here)
            pending += [d["pkg"] for d in nodes[here]["deps"] if any(k["kind"] is None for k in d["dep_kinds"])]

    def reference(package):
        return f"pkg:cargo/{package['name']}@{package['version']}"

    def component(package):
        own = package["source"] is None
        entry = {
            "type": "application" if package["name"] in PROGRAMS else "library",
            "bom-ref": reference(package),
            "name": package["name"],
            "version": package["version"],
            "purl": reference(package),
        }
        if package["license"]:
            entry["licenses"] = [{"expression": package["license"].replace("/", " OR ")}]
        if not own and (checksum := checksums.get((package["name"], package["version"]))):
            entry["hashes"] = [{"alg": "SHA-256", "content": checksum}]
        return entry

    chosen = sorted((packages[i] for i in inside), key=lambda p: (p["name"], p["version"]))
    print(json.dumps({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {"type": "application", "name": "jumping-vpn", "version": packages[next(i for i in inside if packages[i]["name"] == PROGRAMS[0])]["version"]}},
        "components": [component(p) for p in chosen],
        "dependencies": [
            {"ref": reference(p), "dependsOn": sorted({reference(packages[d["pkg"]]) for d in nodes[p["id"]]["deps"] if d["pkg"] in inside})}
            for p in chosen
        ],
    }, indent=1))


if __name__ == "__main__":
    main()
