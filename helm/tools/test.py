#!/usr/bin/env python3
"""Tests the chart: lint, every ci/*-values.yaml rendered and validated, refusals, freshness of what is generated.

With --bin DIR, every rendered configuration is also given to the programs there.
"""

import argparse
import pathlib
import re
import subprocess
import sys
import tempfile

import yaml

import checks
import engine
import generate
import mutations
import schemas

HERE = pathlib.Path(__file__).resolve().parent
KUBERNETES = schemas.versions("1.29", "1.36")
failures: list[str] = []


def fail(what: str):
    failures.append(what)
    print(f"FAIL {what}")


def merged(base: dict, over: dict) -> dict:
    """`over` over `base`, as Helm merges values."""
    both = dict(base)
    for key, value in over.items():
        both[key] = merged(base[key], value) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
    return both


def given_secrets(values: dict) -> set[str]:
    """Secrets that the operator brings."""
    names = {v for k, v in values.get("tls", {}).items() if k.startswith("existing")}
    names |= set(values.get("audit", {}).get("secrets", []))
    return names | {values.get("store", {}).get("external", {}).get("existingSecret", "")}


def render(name: str, values: dict, programs: pathlib.Path | None) -> int:
    """Renders one set of values for install and upgrade and looks for everything that is wrong."""
    for problem in engine.lint(values):
        fail(f"{name}: lint: {problem}")
    count = 0
    for upgrade in (False, True):
        documents = engine.render(values, upgrade)
        count += len(documents)
        for document in documents:
            wrong = {version: text for version in KUBERNETES if (text := schemas.wrong(document, version))}
            if wrong:
                fail(f"{name}: {checks.label(document)} in Kubernetes {', '.join(wrong)}: {next(iter(wrong.values()))}")
        for problem in checks.wrong(documents, given_secrets(values)):
            fail(f"{name}: {problem}")
    if programs:
        for document in documents:
            for problem in refused_by_programs(document, programs):
                fail(f"{name}: {checks.label(document)}: {problem}")
    return count


def refused_by_programs(document: dict, programs: pathlib.Path):
    """What the real programs say of a configuration; files that only exist in a pod do not count."""
    commands = {
        "control.toml": ["jump-control", "serve"],
        "gateway.toml": ["jump-gateway", "run"],
    }
    environment = {
        "JUMP_GATEWAY_NODE": "gw-1",
        "JUMP_GATEWAY_ADVERTISE": "192.0.2.1:51820",
        "JUMP_GATEWAY_MESH_ADVERTISE": "192.0.2.1:51821",
    }
    for file, text in document.get("data", {}).items():
        if document["kind"] != "ConfigMap" or file not in commands:
            continue
        with tempfile.NamedTemporaryFile("w", suffix=".toml") as config, tempfile.TemporaryDirectory() as volume:
            config.write(text.replace("/var/lib/jump-audit", volume))
            config.flush()
            program, verb = commands[file]
            done = subprocess.run(
                [programs / program, verb, "--config", config.name],
                env=environment, capture_output=True, text=True, timeout=60, check=False,
            )
        said = [line for line in done.stderr.splitlines() if line.startswith(f"{program}: ")]
        absent = [line for line in said if re.search("cannot read (the|etcd|/etc/jumping-vpn-audit/)", line)]
        if not said or done.returncode == 0:
            yield f"{program} said nothing about the certificates that are missing here: {done.stderr[-300:]}"
        yield from (line for line in said if line not in absent)


def refusals(base: dict) -> int:
    """Every combination that must be refused is, with its sentence."""
    cases = yaml.safe_load((HERE / "refusals.yaml").read_text())
    for case in cases:
        try:
            engine.render(merged(base, case["values"]))
            fail(f"refusal: {case['name']}: it was taken")
        except engine.Refused as refused:
            if case["says"] not in str(refused):
                fail(f"refusal: {case['name']}: {refused} does not say {case['says']!r}")
    return len(cases)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bin", type=pathlib.Path, help="directory of jump-control and jump-gateway")
    programs = parser.parse_args().bin
    if stale := generate.stale():
        fail(f"stale, run make helm-generate: {', '.join(stale)}")
    files = sorted((engine.CHART / "ci").glob("*-values.yaml"))
    base = yaml.safe_load((engine.CHART / "ci/default-values.yaml").read_text()) or {}
    manifests = 0
    for file in files:
        values = yaml.safe_load(file.read_text()) or {}
        manifests += render(file.stem, values, programs)
    refused = refusals(base)
    whole = yaml.safe_load((engine.CHART / "ci/external-values.yaml").read_text())
    for name in mutations.missed(engine.render(whole), given_secrets(whole)):
        fail(f"the checks do not find {name}")
    print(
        f"{engine.name()}: {len(files)} sets of values, {manifests} manifests against Kubernetes "
        f"{KUBERNETES[0]} to {KUBERNETES[-1]}, {refused} refusals, "
        f"{len(mutations.MUTATIONS)} broken manifests, {len(failures)} failures"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
