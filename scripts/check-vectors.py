#!/usr/bin/env python3
"""Recomputes crates/crypto/vectors/v1.json and crates/session/vectors/frames.json from docs/protocol.md alone.

A second implementation of every message, written from the document with another library's primitives (the Python package
`cryptography`): it shares no code with the crate. Prints what it checked; exits with 1 at the first difference.
"""
import hashlib
import hmac
import ipaddress
import json
import pathlib
import sys

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

try:
    from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
except ImportError:  # An older package: ML-KEM's own two values are then taken as published.
    MLKEM768PrivateKey = None

ROOT = pathlib.Path(__file__).resolve().parent.parent
V = json.loads((ROOT / "crates/crypto/vectors/v1.json").read_text())
unhex = bytes.fromhex
checked = 0


def same(what, made, published):
    global checked
    if made.hex() != published:
        sys.exit(f"{what} differs\n  made      {made.hex()}\n  published {published}")
    checked += 1


def be(number, length):
    return number.to_bytes(length, "big")


def public(private):
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def dh(private, peer):
    return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(peer))


def sign(seed, message):
    return Ed25519PrivateKey.from_private_bytes(seed).sign(message)


def verifying_key(seed):
    return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def sha256(data):
    return hashlib.sha256(data).digest()


def mac_full(key, data):
    return hmac.new(key, data, "sha256").digest()


def mac(key, data):
    return mac_full(key, data)[:16]


def kdf(label, secret, info=b""):
    """HKDF-SHA256, one block (docs/protocol.md §6)."""
    return mac_full(mac_full(label.encode(), secret), info + b"\x01")


class Suite:
    def __init__(self, number):
        self.number = number
        self.chacha, self.hybrid = number in (1, 3), number > 2
        self.name = b"Noise_IKpsk2_25519_" if self.hybrid else b"Noise_IK_25519_"
        self.name += b"ChaChaPoly_BLAKE2s" if self.chacha else b"AESGCM_SHA256"
        self.hash_name = "blake2s" if self.chacha else "sha256"

    def hash(self, data):
        return hashlib.new(self.hash_name, data).digest()

    def hmac(self, key, data):
        return hmac.new(key, data, self.hash_name).digest()

    def seal(self, key, counter, additional, text):
        nonce = bytes(4) + counter.to_bytes(8, "little" if self.chacha else "big")
        return (ChaCha20Poly1305 if self.chacha else AESGCM)(key).encrypt(nonce, text, additional)


class Noise:
    """The symmetric state of the Noise Protocol Framework, revision 34, §5.2."""

    def __init__(self, suite, prologue):
        self.suite = suite
        self.h = suite.name.ljust(32, b"\0") if len(suite.name) <= 32 else suite.hash(suite.name)
        self.ck = self.h
        self.mix_hash(prologue)

    def hkdf(self, data):
        temp = self.suite.hmac(self.ck, data)
        one = self.suite.hmac(temp, b"\x01")
        return one, self.suite.hmac(temp, one + b"\x02")

    def mix_hash(self, data):
        self.h = self.suite.hash(self.h + data)

    def mix_key(self, data):
        self.ck, self.key = self.hkdf(data)
        self.counter = 0

    def mix_ephemeral(self, key):
        """Token "e"; where a pattern has a psk, the public key is mixed into the chaining key too (§9.2)."""
        self.mix_hash(key)
        if self.suite.hybrid:
            self.mix_key(key)

    def mix_key_and_hash(self, data):
        temp = self.suite.hmac(self.ck, data)
        self.ck = self.suite.hmac(temp, b"\x01")
        hashed = self.suite.hmac(temp, self.ck + b"\x02")
        self.key, self.counter = self.suite.hmac(temp, hashed + b"\x03"), 0
        self.mix_hash(hashed)

    def encrypt(self, text):
        sealed = self.suite.seal(self.key, self.counter, self.h, text)
        self.counter += 1
        self.mix_hash(sealed)
        return sealed


def address(text):
    ip, port = text.rsplit(":", 1)
    ip = ipaddress.ip_address(ip.strip("[]"))
    mapped = bytes(10) + b"\xff\xff" + ip.packed if ip.version == 4 else ip.packed
    return bytes([ip.version]) + mapped + be(int(port), 2)


K = V["keys"]
device, cluster = unhex(K["device_private"]), unhex(K["cluster_private"])
cluster_public, grant_seed, node_seed = public(cluster), unhex(K["grant_seed"]), unhex(K["node_seed"])
same("device key", public(device), K["device_public"])
same("cluster key", cluster_public, K["cluster_public"])
same("cluster key id", sha256(cluster_public)[:4], K["cluster_key_id"])
same("node key", verifying_key(node_seed), K["node_public"])
same("grant key", verifying_key(grant_seed), K["grant_public"])
same("grant key id", sha256(verifying_key(grant_seed))[:4], K["grant_key_id"])


def statement(kind, fields, node=None):
    body = bytes([1, kind]) + sha256(verifying_key(grant_seed))[:4] + fields
    body += bytes([len(node)]) + node.encode() if node else b""
    return body + sign(grant_seed, b"jumping-vpn statement v1\0" + body)


c = V["statements"]["node_certificate"]
certificate = statement(1, be(c["incarnation"], 8) + unhex(c["verifying_key"]) + be(c["not_after"], 8), c["node"])
same("node certificate", certificate, c["encoding"])
g = V["statements"]["grant"]
fields = unhex(g["handshake_hash"]) + unhex(g["session"]) + unhex(g["device"])
fields += be(g["epoch"], 8) + be(g["incarnation"], 8) + be(g["not_after"], 8)
same("grant", statement(2, fields, g["node"]), g["encoding"])
k = V["statements"]["key_set"]
keys = b"".join(bytes([len(k[kind])]) + b"".join(map(unhex, k[kind])) for kind in ("cluster", "grant"))
same("key set", statement(3, be(k["serial"], 8) + bytes([k["hybrid"]]) + keys), k["encoding"])
r = V["statements"]["device_rotation"]
new, challenge = unhex(r["new_device_private"]), unhex(r["challenge_private"])
same("challenge", public(challenge), r["challenge"])
secrets = dh(device, public(challenge)) + dh(new, public(challenge))
info = public(challenge) + public(device) + public(new)
same("answer", kdf("jumping-vpn device rotation v1", secrets, info), r["answer"])
p = V["statements"]["node_proof"]
same("node proof", sign(node_seed, b"jumping-vpn node proof v1\0" + unhex(p["handshake_hash"])), p["signature"])


def attach_init(suite, v, cookie=None):
    intent = v["intent"]
    header = bytes([1, 1, suite.number, 0]) + sha256(cluster_public)[:4] + unhex(v["client_index"])
    noise = Noise(suite, b"jumping-vpn attach v1\0" + header)
    noise.mix_hash(cluster_public)
    ephemeral = unhex(v["client_ephemeral_private"])
    noise.mix_ephemeral(public(ephemeral))
    noise.mix_key(dh(ephemeral, cluster_public))
    message = public(ephemeral) + noise.encrypt(public(device))
    noise.mix_key(dh(device, cluster_public))
    payload = bytes([1, 1 if intent["session"] else 0]) + be(intent["reason"], 2) + be(intent["capabilities"], 4)
    payload += unhex(intent["session"]) + be(intent["attach_seq"], 8) + be(intent["last_epoch"], 8)
    payload += unhex(intent["attempt"]) + be(intent["key_set"], 8) + b"".join(map(unhex, intent["grant_keys"]))
    if suite.hybrid:
        payload += unhex(v["kem"]["encapsulation_key"])
    message += noise.encrypt(payload.ljust(1300 if suite.hybrid else 500, b"\0"))
    init = header + message
    init += mac(kdf("jumping-vpn mac1 v1", cluster_public), init)
    return noise, init + (mac(cookie, init) if cookie else bytes(16))


def records(what, suite, key, index, published):
    for record in published:
        header = bytes([4, record["content"], 0, 0]) + index + be(record["counter"], 8)
        text = unhex(record["plaintext"])
        same(f"{what} record", header + suite.seal(key, record["counter"], header, text), record["record"])


for v in V["handshake"]:
    suite = Suite(v["suite"])
    noise, init = attach_init(suite, v)
    same("AttachInit", init, v["attach_init"])
    client_index, gateway_index = unhex(v["client_index"]), unhex(v["gateway_index"])
    hint = mac(kdf("jumping-vpn reattach hint v1", cluster), gateway_index)
    same("hint", hint, v["hint"])
    ephemeral, client = unhex(v["gateway_ephemeral_private"]), public(unhex(v["client_ephemeral_private"]))
    noise.mix_ephemeral(public(ephemeral))
    noise.mix_key(dh(ephemeral, client))
    noise.mix_key(dh(ephemeral, public(device)))
    ciphertext = b""
    if suite.hybrid:
        kem = v["kem"]
        ciphertext = unhex(kem["ciphertext"])
        if MLKEM768PrivateKey:
            secret = MLKEM768PrivateKey.from_seed_bytes(unhex(kem["seed"]))
            same("encapsulation key", secret.public_key().public_bytes_raw(), kem["encapsulation_key"])
            same("shared secret", secret.decapsulate(ciphertext), kem["shared_secret"])
        noise.mix_key_and_hash(kdf("jumping-vpn hybrid v1", unhex(kem["shared_secret"]), ciphertext))
    payload = bytes([1, len(v["roster"])]) + hint + b"".join(map(address, v["roster"]))
    message = public(ephemeral) + noise.encrypt(payload)
    to_gateway, to_client = noise.hkdf(b"")
    same("handshake hash", noise.h, v["handshake_hash"])
    header = bytes([2, 1, suite.number, 0]) + client_index + gateway_index + be(len(message), 2) + bytes(2)
    proof = be(len(certificate), 2) + certificate + sign(node_seed, b"jumping-vpn node proof v1\0" + noise.h)
    same("AttachReply", header + ciphertext + message + suite.seal(to_client, 0, header, proof), v["attach_reply"])
    records("client", suite, to_gateway, gateway_index, v["records_to_gateway"])
    records("gateway", suite, to_client, client_index, v["records_to_client"])

t = V["gate"]
first = unhex(t["attach_init_without_cookie"])
secret = mac_full(kdf("jumping-vpn cookie v1", cluster), be(t["time"] // 120, 8))
cookie = mac(secret, address(t["source"])[1:])
same("cookie", cookie, t["cookie"])
_, second = attach_init(Suite(1), V["handshake"][0], cookie)
same("AttachInit with a cookie", second, t["attach_init_with_cookie"])
nonce = unhex(t["cookie_reply_nonce"])
header = bytes([3, 1, 0, 0]) + first[8:12] + nonce
key = mac_full(kdf("jumping-vpn cookie reply v1", cluster_public), nonce + first[608:624])
same("CookieReply", header + Suite(1).seal(key, 0, header, cookie), t["cookie_reply"])
header = bytes([7, 1]) + be(t["busy_ms"], 2) + first[8:12]
same("Busy", header + mac(kdf("jumping-vpn busy v1", cluster_public), header + first[608:624]), t["busy"])
index = unhex(t["hint_index"])
hint = mac(kdf("jumping-vpn reattach hint v1", cluster), index)
same("ReattachHint", bytes([5, 1, 0, 0]) + index + hint, t["reattach_hint"])

m = V["mesh"]
ends = [be(m[e]["number"], 2) + be(m[e]["incarnation"], 8) + public(unhex(m[e]["private"])) for e in "ab"]
key = kdf("jumping-vpn mesh link v1", dh(unhex(m["a"]["private"]), ends[1][10:]), ends[0] + ends[1])
header = bytes([6, 0, 0, 0]) + be(m["a"]["number"] << 20, 4) + be(0, 8)
same("mesh record", header + Suite(1).seal(key, 0, header, unhex(m["plaintext"])), m["record_from_a"])

accepted = set()
for counter, verdict in V["replay_window"]:
    newest = max(accepted, default=0)
    expected = "too old" if newest - counter > 8192 else "duplicate" if counter in accepted else "accepted"
    if verdict != expected:
        sys.exit(f"replay window: {counter} is {verdict}, not {expected}")
    accepted.add(counter) if verdict == "accepted" else None
    checked += 1


def endpoint(text):
    host, port = text.rsplit(":", 1)
    return ip(host.strip("[]")) + be(int(port), 2)


def ip(text):
    packed = ipaddress.ip_address(text)
    return bytes([packed.version]) + packed.packed


def listed(items, write):
    return bytes([len(items)]) + b"".join(map(write, items))


def route(text):
    net, length = text.split("/")
    return ip(net) + bytes([int(length)])


def sized(data):
    return be(len(data), 2) + data


def accepted_body(a):
    return b"".join([
        b"\1", unhex(a["session"]), be(a["epoch"], 8), unhex(a["correlation"]), be(a["mtu"], 2),
        be(a["switches_per_minute_max"], 2),
        *(be(a[f"{time}_ms"], 8) for time in ("switch_cooldown", "recovery_window", "expires_in", "lease")),
        sized(unhex(a["grant"])), listed(a["inner"], ip), listed(a["routes"], route), listed(a["dns"], ip),
        listed(a["roster"], endpoint), listed(a["doors"], lambda d: bytes([d["transport"]]) + be(d["port"], 2)),
    ])


def rejected_body(r):
    numbers = be(r["current_epoch"], 8) + be(r["current_attach_seq"], 8) + be(r["retry_after_ms"], 8)
    return b"\2" + be(r["reason"], 2) + numbers


def frame(f):
    match f["frame"]:
        case "Confirm": return b"\x01"
        case "AttachResult" if "accepted" in f: return b"\x02" + accepted_body(f["accepted"])
        case "AttachResult": return b"\x02" + rejected_body(f["rejected"])
        case "Ping": return b"\x03" + be(f["id"], 8)
        case "Pong": return b"\x04" + be(f["id"], 8) + be(f["received"], 8) + be(f["newest"], 8)
        case "PathChallenge": return b"\x05" + unhex(f["token"])
        case "PathResponse": return b"\x06" + unhex(f["token"])
        case "Migrate": return b"\x07" + be(f["reason"], 2) + listed(f["targets"], endpoint)
        case "Terminated": return b"\x08" + be(f["reason"], 2)
        case "Close": return b"\x09" + be(f["reason"], 2)
        case "MtuProbe": return (b"\x0a" + be(f["id"], 8) + be(f["mtu"], 2)).ljust(f["length"], b"\0")
        case "Bound": return b"\x0b" + be(f["binding"], 8)
        case "Keys": return b"\x0c" + sized(unhex(f["key_set"]))
        case "Pending": return b"\x0d"
        case "MtuAnswer": return (b"\x0e" + be(f["id"], 8) + be(f["mtu_max"], 2)).ljust(f["length"], b"\0")


for f in json.loads((ROOT / "crates/session/vectors/frames.json").read_text()):
    same(f["frame"], frame(f), f["bytes"])

print(f"check-vectors: {checked} values agree with an independent computation")
