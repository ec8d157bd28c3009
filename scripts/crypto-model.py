#!/usr/bin/env python3
"""Asks Verifpal the queries of docs/crypto.md about docs/models/attach.vp, one run per compromise.

Usage: crypto-model.py VERIFPAL OUTPUT_DIRECTORY. Prints one line per query, exits with 1 when an answer is not the expected one.
"""
import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODEL = (ROOT / "docs/models/attach.vp").read_text()

SECRECY = ["confidentiality? uplink", "confidentiality? downlink"]
TO_GATEWAY = ["authentication? Client -> Gateway: e_confirm", "authentication? Client -> Gateway: e_uplink"]
TO_CLIENT = ["authentication? Gateway -> Client: e_result", "authentication? Gateway -> Client: e_downlink"]

# name, what leaks at the start, what leaks after the session, queries with the expected answer
CASES = [
    ("nothing-stolen", [], [], {
        **dict.fromkeys(SECRECY + ["confidentiality? attempt"], "holds"),
        # Any key pair gets as far as a confirmation; control refuses it then. So the roster is no secret.
        "confidentiality? hint": "falls",
        "authentication? Client -> Gateway: e_confirm": "falls",
        "authentication? Client -> Gateway: e_uplink": "holds",
        **dict.fromkeys(TO_CLIENT, "holds"),
        # A recorded AttachInit is accepted again; what confirms it is not.
        "authentication? Client -> Gateway: e_intent": "falls",
        "freshness? confirm": "holds",
    }),
    ("cluster-key-stolen", ["cluster"], [], dict.fromkeys(SECRECY + TO_CLIENT, "holds")),
    ("grant-key-stolen", ["grantkey"], [], dict.fromkeys(SECRECY + TO_CLIENT + TO_GATEWAY, "holds")),
    ("device-key-stolen", ["device"], [], {
        # The thief is the device now; it still cannot play a gateway to the true one.
        **dict.fromkeys(TO_CLIENT, "holds"),
        "confidentiality? uplink": "holds",
        "authentication? Client -> Gateway: e_confirm": "falls",
    }),
    ("cluster-and-node-key-stolen", ["cluster", "nodekey"], [], {
        # A gateway taken over whole: it is the gateway until its certificate ends. The grant still binds the handshake.
        "authentication? Gateway -> Client: e_proof": "falls",
    }),
    ("all-keys-stolen-afterwards", [], ["grantkey", "cluster", "nodekey", "device"], {
        **dict.fromkeys(SECRECY, "holds"),
        # The payload of a first message has no forward secrecy (protocol.md §3.2).
        "confidentiality? attempt": "falls",
    }),
]

OWNER = {"grantkey": "Control", "cluster": "Gateway", "nodekey": "Gateway", "device": "Client"}


def compose(leaks, later, queries):
    text = MODEL
    for name in leaks:
        text = text.replace(f"//@leak {name}", f"leaks {name}")
    after = ""
    if later:
        after = "phase[1]\n" + "".join(f"principal {OWNER[name]}[\n\tleaks {name}\n]\n" for name in later)
    return text.replace("//@later", after).replace("//@queries", "\n\t".join(queries))


def main():
    verifpal, out = sys.argv[1], pathlib.Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    bad = 0
    for name, leaks, later, queries in CASES:
        model = out / f"attach-{name}.vp"
        model.write_text(compose(leaks, later, queries))
        run = subprocess.run([verifpal, "verify", str(model), "--format", "json", *sys.argv[3:]], capture_output=True, text=True)
        (out / f"attach-{name}.json").write_text(run.stdout)
        if not run.stdout.strip():
            print(f"{name}: Verifpal refused the model:\n{run.stderr}")
            sys.exit(1)
        answers = results(json.loads(run.stdout))
        for (query, expected), answer in zip(queries.items(), answers, strict=True):
            mark = "as expected" if answer == expected else f"EXPECTED: {expected}"
            bad += answer != expected
            print(f"{name:30} {query:50} {answer:6} {mark}", flush=True)
    sys.exit(1 if bad else 0)


def results(report):
    return ["falls" if query["resolved"] else "holds" for query in report["models"][0]["analysis"]["queries"]]


main()
