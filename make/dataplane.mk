# The data plane beside other tunnels (docs/dataplane.md).
.PHONY: bench-dataplane bench-dataplane-docs bench-endurance bench-sessions bench-instructions

# Rounds of `make bench-dataplane`, the minutes after which it stops to be gone on with later (empty: when all rounds are
# done), how long `make bench-endurance` lasts, and where the other tunnels are installed and the results go.
ROUNDS ?= 5
MINUTES_EACH ?=
ENDURANCE_MINUTES ?= 10
PEERS_DIR ?= .run/peers
RESULTS_DIR ?= .run/bench-dataplane

bench-dataplane: ## Measures this tunnel beside wireguard-go, gotatun, boringtun, OpenVPN and nebula, and says which promises hold (ROUNDS=n, MINUTES_EACH=n for a piece of it); as root
	@scripts/install-deps.sh build demo
	@scripts/install-peers.sh $(PEERS_DIR)
	@$(CARGO) build --workspace --bins --locked --profile $(if $(filter dev,$(PROFILE)),lab,$(PROFILE))
	@$(TARGET_DIR)/$(if $(filter dev,$(PROFILE)),lab,$(PROFILE))/jump-bench-dataplane --rounds $(ROUNDS) $(if $(MINUTES_EACH),--minutes $(MINUTES_EACH)) --tools $(PEERS_DIR) --out $(RESULTS_DIR)

bench-dataplane-docs: ## Puts the tables of what `make bench-dataplane` has measured into docs/dataplane.md
	@$(CARGO) build -p jump-tests --bin jump-bench-dataplane --locked --profile $(if $(filter dev,$(PROFILE)),lab,$(PROFILE))
	@$(TARGET_DIR)/$(if $(filter dev,$(PROFILE)),lab,$(PROFILE))/jump-bench-dataplane --report --out $(RESULTS_DIR) --document docs/dataplane.md

bench-endurance: ## One stream at full load through a session that moves every second: no leak, no stall (ENDURANCE_MINUTES=n); as root
	@scripts/install-deps.sh build demo
	@$(CARGO) build --workspace --bins --locked --profile $(if $(filter dev,$(PROFILE)),lab,$(PROFILE))
	@$(TARGET_DIR)/$(if $(filter dev,$(PROFILE)),lab,$(PROFILE))/jump-bench-endurance --minutes $(ENDURANCE_MINUTES)

bench-sessions: ## Measures one, 1,000 and 10,000 sessions sending at once, and the memory of 100,000; as root
	@scripts/install-deps.sh build demo
	$(CARGO) bench -p jump-gateway --profile lab --locked --bench sessions -- throughput
	$(CARGO) bench -p jump-gateway --profile lab --locked --bench sessions -- memory

bench-instructions: ## Counts the instructions per packet of the data plane with callgrind, and times it
	@scripts/install-deps.sh build callgrind
	$(CARGO) bench -p jump-gateway --profile lab --locked --bench hotpath
	@scripts/count-instructions.sh $(CARGO)
