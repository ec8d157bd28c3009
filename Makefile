# The one entry point: CI runs these same targets and nothing else. `make help` prints the line after each `##`.

CARGO ?= cargo
# The build profile of `make build`, `make demo` and `make bench-failover`: dev, lab (optimised, quick to build) or release.
PROFILE ?= dev
# The store of `make demo`: embedded or etcd (three nodes, two control replicas).
STORE ?= embedded
# How many times `make demo` runs.
REPEAT ?= 1
# How many kills and how many clean shutdowns `make bench-failover` measures.
RUNS ?= 20

TARGET_DIR = $(or $(CARGO_TARGET_DIR),target)
BIN_DIR = $(TARGET_DIR)/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))

.DEFAULT_GOAL := help
.PHONY: help build demo test test-full fmt lint check-boundaries doc bench-failover clean

-include make/*.mk

help: ## Lists the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## Builds every program (PROFILE=dev|lab|release)
	@scripts/install-deps.sh build
	$(CARGO) build --workspace --bins --locked --profile $(PROFILE)

demo: ## Kills the gateway under a download and checks that the session goes on (STORE=embedded|etcd, REPEAT=n); as root
	@scripts/install-deps.sh build demo $(STORE)
	@$(CARGO) build --workspace --bins --locked --profile $(PROFILE)
	@$(BIN_DIR)/jump-demo --store $(STORE) --repeat $(REPEAT)

test: ## Installs what the tests need and runs all of them; as root
	@scripts/install-deps.sh build demo etcd test
	@scripts/check-boundaries.sh
	@python3 scripts/supply-chain.py
	$(CARGO) build --workspace --bins --locked
	@$(MAKE) --no-print-directory helm-test proto-check
	$(CARGO) test --workspace --locked --no-fail-fast

test-full: ## The end-to-end tests at the promised sizes: a thousand races, a million garbage datagrams, ten thousand sessions; as root
	@scripts/install-deps.sh build demo etcd test
	$(CARGO) build --workspace --bins --locked
	JUMP_TEST_FULL=1 $(CARGO) test --package jump-tests --locked --no-fail-fast --test 'e2e_*'

fmt: ## Formats the code
	$(CARGO) fmt --all

lint: ## Checks the format, clippy and the boundaries between the crates
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	@scripts/check-boundaries.sh

check-boundaries: ## Checks what each crate may depend on
	@scripts/check-boundaries.sh

doc: ## Builds the API documentation; a warning is an error
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --locked

bench-failover: ## Measures the gap of RUNS gateway kills and RUNS clean shutdowns (STORE=embedded|etcd); as root
	@scripts/install-deps.sh build demo $(STORE)
	@$(CARGO) build --workspace --bins --locked --profile $(PROFILE)
	@$(BIN_DIR)/jump-bench-failover --store $(STORE) --runs $(RUNS)

clean: ## Removes what was built and the runs' logs
	$(CARGO) clean
	rm -rf .run
