# Moves end to end (docs/paths.md).
.PHONY: test-e2e test-rolling test-upgrade bench-moves

# How many changes of each kind `make test-e2e` measures, how many drains in a row, and under how many Mbit/s.
CHANGES ?= 10
DRAINS ?= 50
DRAIN_MBIT ?= 100
# The other revision of `make test-upgrade`, or the directory of its programs where they are built already.
BASE ?= HEAD~1
BASE_DIR ?=

test-e2e test-rolling bench-moves: PROFILE = lab

test-e2e: ## Moves, fallback, drains, bad weather, abuse and path MTU end to end in their long forms, then measured; as root
	@scripts/install-deps.sh build demo etcd test
	@$(CARGO) build --workspace --bins --locked --profile $(PROFILE)
	JUMP_TEST_FULL=1 $(CARGO) test --package jump-tests --locked --profile $(PROFILE) --no-fail-fast --test 'e2e_m[ot]*' -- --nocapture
	@$(MAKE) --no-print-directory bench-moves

test-rolling: ## Restarts all gateways and control replicas five times under 50 Mbit/s: no packet lost or repeated, no reset; as root
	@scripts/install-deps.sh build demo etcd test
	@$(CARGO) build --workspace --bins --locked --profile $(PROFILE)
	JUMP_TEST_FULL=1 $(CARGO) test --package jump-tests --locked --profile $(PROFILE) --test e2e_rolling -- --nocapture

test-upgrade: ## Runs every mix of this build and another (BASE=revision, or BASE_DIR=its programs): attach, kill, drain, same session; as root
	@scripts/install-deps.sh build demo etcd test
	@$(CARGO) build --workspace --bins --locked --profile $(PROFILE)
	@base="$(BASE_DIR)"; [ -n "$$base" ] || base=$$(scripts/build-base.sh "$(BASE)" $(PROFILE) "$(TARGET_DIR)") || exit; \
	JUMP_TEST_BASE="$$base" $(CARGO) test --package jump-tests --locked --profile $(PROFILE) --test e2e_upgrade -- --ignored --nocapture

bench-moves: ## Measures the gap of each change of path and the loss of drains, and judges them (CHANGES=n DRAINS=n); as root
	@scripts/install-deps.sh build demo test
	@$(CARGO) build --workspace --bins --locked --profile $(PROFILE)
	@$(BIN_DIR)/jump-bench-moves --runs $(CHANGES) --drains $(DRAINS) --rate-mbit $(DRAIN_MBIT) --out $(REPORTS)
