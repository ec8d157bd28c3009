# The proof of the ownership protocol (docs/ownership.md).

# How many runs `make test-sim` makes, from which seed, and on how many threads; SEED=n replays one with its trace.
SEEDS ?= 10000
FIRST ?= 1
THREADS ?= 2
SEED ?=

.PHONY: test-model test-sim

test-model: ## Checks every reachable state of the ownership protocol at all sizes, and that deliberate mistakes are found (minutes)
	@scripts/install-deps.sh build
	$(CARGO) test --locked -p jump-tests --test model -- --include-ignored --nocapture --test-threads 1

test-sim: ## Simulates whole clusters under faults (SEEDS=n FIRST=n THREADS=n; SEED=n replays one run and shows its trace)
	@scripts/install-deps.sh build
	JUMP_SIM_SEEDS=$(SEEDS) JUMP_SIM_FIRST=$(FIRST) JUMP_SIM_THREADS=$(THREADS) $(if $(SEED),JUMP_SIM_SEED=$(SEED)) \
		$(CARGO) test --locked -p jump-tests --test sim -- --nocapture --test-threads 1 $(if $(SEED),every_seed)
