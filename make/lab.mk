# The lab: scenarios, faults, pilots (docs/benchmarks.md, docs/pilot.md). As root.
.PHONY: bench bench-full test-faults pilot scale results bench-peers

# How long `make test-faults` goes on, and from which seed.
MINUTES ?= 10
LAB_SEED ?= 1
# Which profile of deploy/pilots `make pilot` runs.
PILOT ?= mobile
# Where reports go.
REPORTS ?= .run/reports

LAB_NAMES = steady mass-reattach nat-churn loss-grid rolling-restart scale store-leader-loss control-outage switch-abuse live-move \
	flood soak faults
LAB_SCENARIOS = $(LAB_NAMES:%=tests/scenarios/%.toml)
LAB_REPORTS = $(wildcard $(LAB_NAMES:%=$(REPORTS)/%.json))

# Benchmarks of a debug build say nothing.
bench bench-full test-faults pilot scale results bench-peers: PROFILE = lab

bench: build-lab ## Runs every scenario in its small form and judges it (some 15 minutes); reports in .run/reports; as root
	@$(BIN_DIR)/jump-lab run --out $(REPORTS) $(LAB_SCENARIOS)

bench-full: build-lab ## Runs every scenario in its large form (hours: the soak alone takes four); as root
	@$(BIN_DIR)/jump-lab run --full --out $(REPORTS) $(LAB_SCENARIOS)

test-faults: build-lab ## Faults of every kind for MINUTES=n from LAB_SEED=n, histories checked; as root
	@$(BIN_DIR)/jump-lab run --minutes $(MINUTES) --seed $(LAB_SEED) --out $(REPORTS) tests/scenarios/faults.toml

pilot: build-lab ## Runs a pilot profile and gives a verdict (PILOT=mobile|fintech|edge); as root
	@$(BIN_DIR)/jump-lab pilot --out $(REPORTS) deploy/pilots/$(PILOT).yaml

scale: build-lab ## Simulates clusters of up to a million sessions and a thousand gateways and puts the sizing table into docs/scaling.md (some minutes)
	@$(BIN_DIR)/jump-lab scale --seed $(LAB_SEED) --document docs/scaling.md

bench-peers: build-lab ## Takes this tunnel and others through loss, a new address and the death of the gateway's process (some 5 minutes); as root
	@scripts/install-peers.sh $(PEERS_DIR)
	@$(BIN_DIR)/jump-lab peers --tools $(PEERS_DIR)

results: build-lab ## Keeps the results of the reports in .run/reports in docs/results.json and puts their table into README.md
	@$(BIN_DIR)/jump-lab table --keep docs/results.json --document README.md $(or $(LAB_REPORTS),docs/results.json)

.PHONY: build-lab
build-lab: PROFILE = lab
# Reports name the commit that their program was built from.
build-lab: export JUMP_COMMIT = $(shell git describe --always --dirty --abbrev=12 --exclude='*' 2>/dev/null)
build-lab:
	@scripts/install-deps.sh build demo etcd test
	@$(CARGO) build --workspace --bins --locked --profile lab
