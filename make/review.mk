# The security review package (docs/audit-guide.md).

# How many trials `make test-replay` makes, and how many seconds each target of `make fuzz-long` runs.
TRIALS ?= 1000000
FUZZ_SECONDS ?= 3600

.PHONY: supply-chain reproducible fuzz-smoke fuzz-long test-replay security-score

supply-chain: ## Checks sources, checksums, licences, bans and unsafe code; then advisories with cargo-deny (installs it on first use)
	@python3 scripts/supply-chain.py
	@command -v cargo-deny >/dev/null 2>&1 || $(CARGO) install --locked cargo-deny
	$(CARGO) deny --locked check

reproducible: ## Builds the release twice, in two directories, and compares the programs byte for byte (long)
	@scripts/reproducible.sh

security-score: ## Prints what systemd thinks of the units' hardening (systemd-analyze security, offline)
	@scripts/security-score.sh

fuzz-smoke: ## Replays every corpus and mutates it for a few seconds per target, on stable
	$(CARGO) test --locked -p jump-crypto --test corpus
	$(CARGO) test --locked -p jump-session -p jump-proto --test corpus
	$(CARGO) test --locked -p jump-gateway --lib fuzz

fuzz-long: ## Mutates every corpus for FUZZ_SECONDS per target, on stable
	JUMP_FUZZ_SECONDS=$(FUZZ_SECONDS) $(CARGO) test --locked -p jump-crypto -p jump-session -p jump-proto --test corpus -- --nocapture
	JUMP_FUZZ_SECONDS=$(FUZZ_SECONDS) $(CARGO) test --locked -p jump-gateway --lib fuzz -- --nocapture

test-replay: ## Replays captures of every phase TRIALS times, whole, in part, reordered, across sessions and nodes
	JUMP_REPLAY_TRIALS=$(TRIALS) $(CARGO) test --locked -p jump-gateway --lib replay -- --nocapture
