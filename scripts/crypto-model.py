#!/usr/bin/env python3
"""Asks Verifpal the queries of docs/crypto.md about docs/models/*.vp, one run per model and compromise.

Usage: crypto-model.py VERIFPAL OUTPUT_DIRECTORY [CASE...]. Prints one line per query, exits with 1 when an answer is not the
expected one.
"""
import json
import pathlib
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODELS = ROOT / "docs/models"

SECRECY = ["confidentiality? uplink", "confidentiality? downlink"]
TO_CLIENT = ["authentication? Cluster -> Client: e_result", "authentication? Cluster -> Client: e_downlink"]

# name, model, concurrent sessions, what leaks at the start, what leaks after the session, queries with the expected answer
CASES = [
    ("nothing-stolen", "attach", 1, {}, {}, {
        **dict.fromkeys(SECRECY + ["confidentiality? attempt"], "holds"),
        # Any key pair gets as far as a confirmation; control refuses it then. So the roster is no secret.
        "confidentiality? hint": "falls",
        "authentication? Client -> Cluster: e_confirm": "falls",
        "authentication? Client -> Cluster: e_uplink": "holds",
        **dict.fromkeys(TO_CLIENT, "holds"),
        "freshness? confirm": "holds",
    }),
    ("cluster-key-stolen", "attach", 1, {"Cluster": "cluster"}, {}, dict.fromkeys(SECRECY + TO_CLIENT, "holds")),
    ("grant-key-stolen", "attach", 1, {"Cluster": "grantkey"}, {}, dict.fromkeys(SECRECY + TO_CLIENT, "holds")),
    ("device-key-stolen", "attach", 1, {"Client": "device"}, {}, {
        # The thief is the device now; it still cannot play a gateway to the true one.
        **dict.fromkeys(TO_CLIENT, "holds"),
        "confidentiality? uplink": "holds",
        "authentication? Client -> Cluster: e_confirm": "falls",
    }),
    ("cluster-and-node-key-stolen", "attach", 1, {"Cluster": "cluster, nodekey"}, {}, {
        # A gateway taken over whole: it is the gateway until its certificate ends. The grant still binds the handshake.
        "authentication? Cluster -> Client: e_proof": "falls",
    }),
    ("all-keys-stolen-afterwards", "attach", 1, {}, {"Cluster": "grantkey, cluster, nodekey", "Client": "device"}, {
        **dict.fromkeys(SECRECY, "holds"),
        # The payload of a first message has no forward secrecy (protocol.md §3.2).
        "confidentiality? attempt": "falls",
    }),
    # What a quantum computer gets of a recorded session: every X25519 key, also those of the handshake itself.
    ("x25519-broken-afterwards", "attach", 1, {}, {"Cluster": "cluster, ge", "Client": "device, ce"}, {
        "confidentiality? uplink": "falls",
    }),
    ("x25519-broken-afterwards", "hybrid", 1, {}, {"Cluster": "cluster, ge", "Client": "device, ce"},
     dict.fromkeys(SECRECY, "holds")),
    # ML-KEM broken: a hybrid suite is worth what a classical one is.
    ("ml-kem-broken", "hybrid", 1, {"Handshake": "kem"}, {}, dict.fromkeys(SECRECY + TO_CLIENT, "holds")),
]


def compose(model, leaks, later, queries):
    text = (MODELS / f"{model}.vp").read_text()
    for place, names in leaks.items():
        text = text.replace(f"//@leak {place}", f"leaks {names}")
    after = ""
    if later:
        after = "phase[1]\n" + "".join(f"principal {owner}[\n\tleaks {names}\n]\n" for owner, names in later.items())
    return text.replace("//@later", after).replace("//@queries", "\n\t".join(queries))


def main():
    verifpal, out = sys.argv[1], pathlib.Path(sys.argv[2])
    wanted = sys.argv[3:]
    out.mkdir(parents=True, exist_ok=True)
    bad = 0
    for name, kind, sessions, leaks, later, queries in CASES:
        name = f"{kind}-{name}"
        if wanted and name not in wanted:
            continue
        model = out / f"{name}.vp"
        model.write_text(compose(kind, leaks, later, queries))
        begun = time.monotonic()
        command = [verifpal, "verify", str(model), "--format", "json", "--sessions", str(sessions)]
        run = subprocess.run(command, capture_output=True, text=True)
        (out / f"{name}.json").write_text(run.stdout)
        if not run.stdout.strip():
            print(f"{name}: Verifpal refused the model:\n{run.stderr}")
            sys.exit(1)
        print(f"{name}: {sessions} session(s), {time.monotonic() - begun:.0f} s")
        answers = results(json.loads(run.stdout))
        for (query, expected), answer in zip(queries.items(), answers, strict=True):
            mark = "as expected" if answer == expected else f"EXPECTED: {expected}"
            bad += answer != expected
            print(f"    {query:50} {answer:6} {mark}", flush=True)
    sys.exit(1 if bad else 0)


def results(report):
    return ["falls" if query["resolved"] else "holds" for query in report["models"][0]["analysis"]["queries"]]


main()
