# Moves end to end (docs/paths.md).
.PHONY: test-e2e bench-moves

# How many changes of each kind `make test-e2e` measures, how many drains in a row, and under how many Mbit/s.
CHANGES ?= 10
DRAINS ?= 50
DRAIN_MBIT ?= 100

test-e2e bench-moves: PROFILE = lab

test-e2e: ## Moves, fallback, drains, bad weather, abuse and path MTU end to end in their long forms, then measured; as root
	@scripts/install-deps.sh build demo etcd test
	@$(CARGO) build --workspace --bins --locked --profile $(PROFILE)
	JUMP_TEST_FULL=1 $(CARGO) test --package jump-tests --locked --profile $(PROFILE) --no-fail-fast --test 'e2e_m[ot]*' -- --nocapture
	@$(MAKE) --no-print-directory bench-moves

bench-moves: ## Measures the gap of each change of path and the loss of drains, and judges them (CHANGES=n DRAINS=n); as root
	@scripts/install-deps.sh build demo test
	@$(CARGO) build --workspace --bins --locked --profile $(PROFILE)
	@$(BIN_DIR)/jump-bench-moves --runs $(CHANGES) --drains $(DRAINS) --rate-mbit $(DRAIN_MBIT) --out $(REPORTS)
