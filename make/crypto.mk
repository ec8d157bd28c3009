# Targets of the crypto module (docs/crypto.md).
.PHONY: bench-crypto crypto-vectors crypto-fixtures crypto-model crypto-mutants fuzz-crypto

bench-crypto: ## Measures handshake, records, window and gates, and tests the compares' timing
	$(CARGO) bench --locked -p jump-crypto --bench crypto
	$(CARGO) bench --locked -p jump-crypto --bench constant_time

crypto-vectors: ## Checks the published test vectors of messages and frames with an independent implementation (Python, cryptography)
	$(CARGO) test --locked -p jump-crypto -p jump-session --test vectors --test frames
	@python3 scripts/check-vectors.py

crypto-fixtures: ## Writes the published vectors and the seeds of the fuzz corpus anew, after a change of the protocol
	$(CARGO) test --locked -p jump-crypto -p jump-session --test vectors --test frames -- --ignored write_the
	JUMP_WRITE_CORPUS=1 $(CARGO) test --locked -p jump-crypto --test corpus

crypto-model: ## Verifies the symbolic model of handshake and attach with Verifpal (builds it on first use)
	@scripts/crypto-model.sh

crypto-mutants: ## Breaks the crypto module in many places, one at a time; every break must fail a test (some 15 minutes)
	@nice scripts/crypto-mutants.py

fuzz-crypto: ## Runs the crypto fuzz targets for ten minutes each, on stable (mutations of the committed corpus)
	JUMP_FUZZ_SECONDS=600 $(CARGO) test --locked -p jump-crypto --test corpus -- --nocapture
