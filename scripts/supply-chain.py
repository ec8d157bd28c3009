#!/usr/bin/env python3
"""Checks what the programs are made of, without a network: sources, checksums, licences, banned and doubled crates against
deny.toml, and where `unsafe` stands. Prints every violation; exits with 1 if there is one.

`make supply-chain` runs it, and cargo-deny (which knows the advisories) where it is installed.
"""

import collections
import json
import pathlib
import re
import subprocess
import sys
import tomllib

ROOT = pathlib.Path(__file__).resolve().parent.parent
REGISTRY = "registry+https://github.com/rust-lang/crates.io-index"

# Modules that may hold `unsafe`, and how many uses each has. Production code first; whoever adds one changes this line
# and says why in the change.
UNSAFE = {
    "crates/transport/src/sys.rs": 22,
    # A counting allocator can only be written so.
    "crates/transport/tests/allocation.rs": 5,
    "gateway/benches/sessions.rs": 5,
    "gateway/tests/allocation.rs": 5,
}

failures = []


def fail(text):
    failures.append(text)


def run(*command):
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def allowed(expression, allow):
    """Says whether an SPDX expression can be satisfied with the allowed licences."""
    tokens = re.findall(r"\(|\)|AND|OR|[A-Za-z0-9.+-]+(?: WITH [A-Za-z0-9.-]+)?", expression.replace("/", " OR "))

    def parse_or(at):
        value, at = parse_and(at)
        while at < len(tokens) and tokens[at] == "OR":
            right, at = parse_and(at + 1)
            value = value or right
        return value, at

    def parse_and(at):
        value, at = parse_one(at)
        while at < len(tokens) and tokens[at] == "AND":
            right, at = parse_one(at + 1)
            value = value and right
        return value, at

    def parse_one(at):
        if tokens[at] == "(":
            value, at = parse_or(at + 1)
            return value, at + 1
        return tokens[at] in allow, at + 1

    return bool(tokens) and parse_or(0)[0]


def crates():
    rules = tomllib.loads((ROOT / "deny.toml").read_text())
    allow = set(rules["licenses"]["allow"])
    excepted = {it.get("crate") or it.get("name"): set(it["allow"]) for it in rules["licenses"].get("exceptions", [])}
    banned = {it.get("crate") or it.get("name"): it.get("reason", "") for it in rules["bans"].get("deny", [])}
    lock = tomllib.loads((ROOT / "Cargo.lock").read_text())["package"]
    checksums = {(it["name"], it["version"]): it.get("checksum") for it in lock}
    metadata = json.loads(run("cargo", "metadata", "--locked", "--offline", "--format-version", "1",
                              "--filter-platform", "x86_64-unknown-linux-gnu"))
    used = {node["id"] for node in metadata["resolve"]["nodes"]}
    versions = collections.defaultdict(set)
    count = 0
    for package in metadata["packages"]:
        if package["id"] not in used:
            continue
        name, version = package["name"], package["version"]
        if package["source"] is None:
            continue
        count += 1
        versions[name].add(version)
        if package["source"] != REGISTRY:
            fail(f"{name} {version} comes from {package['source']}")
        if not checksums.get((name, version)):
            fail(f"{name} {version} has no checksum in Cargo.lock")
        licence = package["license"] or ""
        if not allowed(licence, allow | excepted.get(name, set())):
            fail(f"{name} {version} has the licence {licence or 'none named'}, which deny.toml does not allow")
        if name in banned:
            fail(f"{name} is banned: {banned[name]}")
    double = {name: sorted(found) for name, found in versions.items() if len(found) > 1}
    print(f"crates: {count} from crates.io, each with a checksum; licences as deny.toml allows")
    print(f"in more than one version: {len(double)}" + "".join(f"\n  {n} {' '.join(v)}" for n, v in sorted(double.items())))


def unsafe_code():
    # A use: a block, a function, an impl or an attribute; not the word in a comment, a lint or a text.
    use = re.compile(r"\bunsafe\s*(\{|fn\b|impl\b|extern\b)|\bunsafe\s*\(")
    found = {}
    for path in run("git", "ls-files", "*.rs").split():
        text = (ROOT / path).read_text()
        lines = [line for line in text.splitlines() if not line.lstrip().startswith("//")]
        uses = sum(len(use.findall(line)) for line in lines)
        if uses:
            found[path] = uses
        documented = text.count("// SAFETY:") + text.count("# Safety")
        if uses and not documented:
            fail(f"{path} has unsafe code without a SAFETY comment")
    print("unsafe: " + ", ".join(f"{path} {uses}" for path, uses in sorted(found.items())))
    for path in sorted(found.keys() | UNSAFE.keys()):
        if found.get(path, 0) != UNSAFE.get(path, 0):
            fail(f"{path} has {found.get(path, 0)} uses of unsafe, scripts/supply-chain.py expects {UNSAFE.get(path, 0)}")
    for crate in ["crypto", "session", "doctor"]:
        if "#![forbid(unsafe_code)]" not in (ROOT / "crates" / crate / "src/lib.rs").read_text():
            fail(f"crates/{crate} does not forbid unsafe code")


crates()
unsafe_code()
for failure in failures:
    print(f"supply-chain: {failure}", file=sys.stderr)
sys.exit(1 if failures else 0)
