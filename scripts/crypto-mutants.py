#!/usr/bin/env python3
"""Breaks the crypto module in one place at a time and runs its tests: every break must fail one.

The breaks are chosen by hand, one or more for each check that a reviewer relies on (docs/crypto.md lists the outcome). Works on a
copy of the committed tree. Usage: crypto-mutants.py [WORD...] runs only the breaks whose name contains a word.
"""
import os
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
SRC = "crates/crypto/src"

# name, file, what stands there, what replaces it
MUTANTS = [
    ("window: one block too wide", "replay_window.rs", "newest - counter > Self::WIDTH", "newest - counter > Self::WIDTH + BITS"),
    ("window: one counter too narrow", "replay_window.rs", "newest - counter > Self::WIDTH", "newest - counter >= Self::WIDTH"),
    ("window: duplicates pass", "replay_window.rs", "if word & mask == 0 {", "if word & mask <= mask {"),
    ("window: old blocks are not cleared", "replay_window.rs", "ring[Self::slot(counter - step * BITS)] = 0;", "let _ = step;"),
    ("window: one block is not cleared", "replay_window.rs", "for step in 0..steps", "for step in 1..steps"),
    ("window: the floor is ignored", "replay_window.rs", "if counter < self.floor {", "if counter < self.floor && self.floor == 1 {"),
    ("window: shrink forgets what it saw", "replay_window.rs", "        self.floor = next;\n", "        self.floor = next - 1;\n"),
    ("window: spill loses the first counters", "replay_window.rs", "self.first >> offset & 1 == 1", "self.first >> offset & 1 == 2"),
    ("record: opened records are not committed", "record.rs", "        self.window.commit(counter)?;\n", ""),
    ("record: window moves before authentication", "record.rs", "self.window.check(counter)?;", "self.window.commit(counter)?;"),
    ("record: sealing passes its limit by one", "record.rs", "if self.next >= self.limit {", "if self.next > self.limit {"),
    ("record: sealing has no limit", "record.rs", "if self.next >= self.limit {", "if self.next == u64::MAX {"),
    ("record: a counter is used twice", "record.rs", "self.next += 1;", "self.next += self.next & 1;"),
    ("record: rekey is asked for too late", "record.rs", "self.next >= self.limit / 2", "self.next >= self.limit"),
    ("record: no forgery limit", "record.rs", "if self.refused >= self.limit {", "if self.refused == u64::MAX {"),
    ("record: forgeries are not counted", "record.rs", "self.refused += 1;", ""),
    ("record: header is not authenticated", "record.rs", "seal_in_place_separate_tag(nonce, Aad::from(header), text)", "seal_in_place_separate_tag(nonce, Aad::from(&header[..0]), text)"),
    ("record: nonce of ChaCha in the wrong order", "record.rs", "Self::ChaCha20Poly1305 => counter.to_le_bytes()", "Self::ChaCha20Poly1305 => counter.to_be_bytes()"),
    ("record: nonce of AES-GCM in the wrong order", "record.rs", "Self::Aes256Gcm => counter.to_be_bytes()", "Self::Aes256Gcm => counter.to_le_bytes()"),
    ("record: every record counts as newest", "record.rs", "is_none_or(|newest| counter > newest)", "is_none_or(|newest| counter != newest)"),
    ("agreement: multiples serve for another key", "keys.rs", "Some(multiples) if multiples.of == *peer =>", "Some(multiples) if multiples.of == *peer || true =>"),
    ("agreement: multiples pass a point of small order", "keys.rs", "(!bool::from(shared.ct_eq(&[0; 32]))).then_some(shared)", "Some(shared)"),
    ("agreement: multiples of the key before serve on", "keys.rs", "is_none_or(|multiples| multiples.of != *of)", "is_none_or(|_| false)"),
    ("grant: handshake is not compared", "grant.rs", "(same_handshake, \"handshake\")", "(same_handshake || true, \"handshake\")"),
    ("grant: session is not compared", "grant.rs", "claims.session == expected.session", "claims.session == claims.session"),
    ("grant: device is not compared", "grant.rs", "claims.device == expected.device", "claims.device == claims.device"),
    ("grant: epoch is not compared", "grant.rs", "claims.epoch == expected.epoch", "claims.epoch >= expected.epoch"),
    ("grant: node is not compared", "grant.rs", "claims.node == expected.node", "claims.node == claims.node"),
    ("grant: incarnation is not compared", "grant.rs", "claims.incarnation == expected.incarnation", "claims.incarnation == claims.incarnation"),
    ("grant: lives one second longer", "grant.rs", "if now >= self.claims.not_after", "if now > self.claims.not_after"),
    ("grant: signature is not checked", "grant.rs", "statement::verify(self.signed_by, &self.bytes, verifier)?;", "let _ = verifier;"),
    ("certificate: signature is not checked", "certificate.rs", "statement::verify_again(self.signed_by, &self.bytes, verifier)?;", "let _ = verifier;"),
    ("certificate: lives one second longer", "certificate.rs", "if now >= self.claims.not_after", "if now > self.claims.not_after"),
    ("statement: kinds are interchangeable", "statement.rs", "reader.expect(kind as u8)?;", "let _ = (reader.u8()?, kind);"),
    ("statement: a body byte is not signed", "statement.rs", "[DOMAIN, body].concat()", "[DOMAIN, &body[1..]].concat()"),
    ("keys: small-order points are accepted", "keys.rs", "shared.was_contributory().then(||", "true.then(||"),
    ("cookie: mac1 is not checked", "cookie.rs", "bool::from(expected.ct_eq(&init[mac1_at..mac2_at])).then_some(init)", "bool::from(expected.ct_eq(&expected)).then_some(init)"),
    ("cookie: mac2 is not checked", "cookie.rs", "expected.ct_eq(shown).into()", "expected.ct_eq(&expected).into()"),
    ("cookie: port is not bound", "cookie.rs", "bytes[16..].copy_from_slice(&source.port().to_be_bytes());", ""),
    ("cookie: address is not bound", "cookie.rs", "bytes[..16].copy_from_slice(&ip.octets());", "let _ = ip;"),
    ("cookie: previous interval is refused", "cookie.rs", "bucket.checked_sub(1)", "bucket.checked_sub(0)"),
    ("cookie: an older interval is accepted", "cookie.rs", "bucket.checked_sub(1)", "bucket.checked_sub(2)"),
    ("cookie: reply opens for another init", "cookie.rs", "hmac_full(reply, &[nonce, mac1])", "hmac_full(reply, &[nonce, &mac1[..0]])"),
    ("hint: token is not compared", "cookie.rs", "self.token.ct_eq(token).into()", "self.token.ct_eq(&self.token) .unwrap_u8() == token.ct_eq(token).unwrap_u8()"),
    ("hint: token does not depend on the index", "cookie.rs", "mac(&mac_key(&self.hint[..]), &[&index.0.to_be_bytes()])", "mac(&mac_key(&self.hint[..]), &[&(index.0 & 0).to_be_bytes()])"),
    ("handshake: node proof is not checked", "handshake.rs", "if !node.proves(&established.handshake_hash, &signature) {", "if !node.proves(&established.handshake_hash, &signature) && false {"),
    ("handshake: reply header is not authenticated", "handshake.rs", "seal_detached(&header, text)", "seal_detached(&header[..0], text)"),
    ("handshake: a refused proof ends the initiation", "handshake.rs", "self.noise = self.recipe.write(&self.header, &mut again[..len])?;", "let _ = &mut again[..len];"),
    ("handshake: proof counter is reused for records", "handshake.rs", "PROOF_COUNTER + 1)", "PROOF_COUNTER)"),
    ("handshake: both sides seal with one key", "handshake.rs", "(key(to_client), key(to_gateway), 0)", "(key(to_gateway), key(to_client), 0)"),
    ("handshake: prologue does not bind the header", "handshake/message.rs", "header.copy_from_slice(&self.encode());", "let _ = header;"),
    ("handshake: the generator's refusal is ignored", "handshake.rs", "    entropy.fill(&mut key[..])?;", "    let _ = entropy.fill(&mut key[..]);"),
    ("handshake: padding is not checked", "handshake/message.rs", "reader.zeros_to_end()?;", "let _ = reader;"),
    ("handshake: any length passes for a suite", "handshake/message.rs", "if datagram.len() != suite.init_len() {", "if datagram.len() > suite.init_len() + HYBRID_INIT_LEN {"),
    ("handshake: a hybrid reply may outgrow its trigger", "handshake.rs", "let room = roster_room(self.header.suite, certificate.len());", "let room = ROSTER_MAX;"),
    ("handshake: the secret of ML-KEM is not used", "noise.rs", "Suite::HybridAesGcmSha256 => \"Noise_IKpsk2_25519_AESGCM_SHA256\"", "Suite::HybridAesGcmSha256 => \"Noise_IK_25519_AESGCM_SHA256\""),
    ("kem: the ciphertext is not bound", "kem.rs", "derive(\"jumping-vpn hybrid v1\", &shared, &[ciphertext])", "derive(\"jumping-vpn hybrid v1\", &shared, &[&ciphertext[..0]])"),
    ("kem: a key pair without randomness", "kem.rs", "        entropy.fill(&mut seed[..])?;", "        let _ = entropy.fill(&mut seed[..]);"),
    ("kem: a ciphertext without randomness", "kem.rs", "entropy.fill(&mut coins[..]).map_err(EncapsulateError::Entropy)?;", "let _ = entropy.fill(&mut coins[..]);"),
    ("noise: any key is taken for the static one", "noise.rs", "let same = bool::from(self.local.secret().expose().ct_eq(privkey));", "let same = privkey.len() == 32;"),
    ("keys: a known agreement serves every peer", "keys.rs", "Some(known) if known.peer == *peer =>", "Some(known) if known.peer == known.peer =>"),
    ("keys: the agreement outlives its cluster key", "keys.rs", "Some(known) if known.peer == cluster.0 => known", "Some(known) if known.peer == known.peer => known"),
    ("keys: a bad statement is remembered as good", "keys.rs", "            if good {\n", "            if good || !good {\n"),
    ("keys: every statement is remembered already", "keys.rs", "remembered.digests.iter().any(|known| known == digest.as_ref())", "remembered.digests.iter().any(|known| known != digest.as_ref())"),
    ("record: a rekey for the peer's records is asked for too late", "record.rs", "newest >= self.key.aead.sealed_records_max() / 2", "newest >= self.key.aead.sealed_records_max()"),
    ("record: skipping brings counters back", "record.rs", "self.next = self.next.max(counter);", "self.next = counter;"),
    ("entropy: failure does not latch", "entropy.rs", "self.failed = Some(error);", ""),
    ("entropy: repetition cutoff is off by one", "entropy.rs", "self.repetitions >= REPETITION_CUTOFF", "self.repetitions > REPETITION_CUTOFF"),
    ("entropy: proportion cutoff is off by one", "entropy.rs", "self.window_matches >= PROPORTION_CUTOFF", "self.window_matches > PROPORTION_CUTOFF"),
    ("entropy: refused bytes are given out", "entropy.rs", "        if let Err(error) = outcome {\n            bytes.zeroize();", "        if let Err(error) = outcome {"),
    ("mesh: a link's keys are handed out twice", "mesh.rs", "if peer.incarnation <= *newest {", "if peer.incarnation < *newest {"),
    ("mesh: both directions share a key", "mesh.rs", "OpeningKey::new(key(peer, own)", "OpeningKey::new(key(own, peer)"),
    ("mesh: incarnation is not bound", "mesh.rs", "bytes[2..10].copy_from_slice(&self.incarnation.0.to_be_bytes());", ""),
    ("key ring: overlap lasts one second longer", "key_ring.rs", "now < until", "now <= until"),
    ("key ring: promoted before it was announced", "key_ring.rs", "current.is_some() && now < usable_from", "current.is_some() && now + 1 < usable_from"),
    ("key ring: the current key can be withdrawn", "key_ring.rs", "KeyState::Current => Err(RingError::IsCurrent),", "KeyState::Current => Ok(self.change(at, KeyState::Retired, now, Cause::Withdrawn)),"),
]


def run(tree, environment):
    # Most breaks are caught by the unit tests: the vectors are built for the others only.
    for tests in (["--lib"], ["--test", "vectors"]):
        command = ["cargo", "test", "--locked", "--quiet", "-p", "jump-crypto", *tests]
        command += ["--config", "profile.dev.package.jump-crypto.opt-level=1"]
        result = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
        output = result.stdout + result.stderr
        if "could not compile" in output:
            return "DOES NOT COMPILE", output
        if result.returncode != 0:
            failed = re.findall(r"^    ([a-z0-9_:]+)$", output, re.MULTILINE)
            return "caught", sorted(set(failed))[0].split("::")[-1] if failed else "?"
    return "SURVIVED", ""


def main():
    words = sys.argv[1:]
    chosen = [m for m in MUTANTS if not words or any(word in m[0] for word in words)]
    bad = 0
    with tempfile.TemporaryDirectory(prefix="crypto-mutants-") as tree:
        subprocess.run(f"git archive HEAD | tar -x -C {tree}", shell=True, check=True, cwd=ROOT)
        target = os.environ.get("JUMP_MUTANTS_TARGET_DIR", str(pathlib.Path(tree) / "target"))
        environment = dict(os.environ, CARGO_TARGET_DIR=target, PROPTEST_CASES="64")
        outcome, detail = run(tree, environment)
        if outcome != "SURVIVED":
            sys.exit(f"the tests fail without any break: {detail}")
        for name, file, old, new in chosen:
            path = pathlib.Path(tree) / SRC / file
            text = path.read_text()
            if old not in text:
                print(f"{'NOT FOUND':16} {name}", flush=True)
                bad += 1
                continue
            path.write_text(text.replace(old, new, 1))
            outcome, detail = run(tree, environment)
            path.write_text(text)
            bad += outcome != "caught"
            print(f"{outcome:16} {name}: {detail[-2000:]}", flush=True)
    print(f"{len(chosen) - bad} of {len(chosen)} breaks were caught")
    sys.exit(1 if bad else 0)


main()
