# The data plane beside other tunnels (docs/dataplane.md).
.PHONY: bench-dataplane bench-sessions bench-instructions

# Rounds of `make bench-dataplane`, and where the other tunnels are installed and the results go.
ROUNDS ?= 5
PEERS_DIR ?= .run/peers
RESULTS_DIR ?= .run/bench-dataplane

bench-dataplane: ## Measures this tunnel beside wireguard-go, gotatun, boringtun, OpenVPN and nebula (ROUNDS=n, PROFILE=lab); as root
	@scripts/install-deps.sh build demo
	@scripts/install-peers.sh $(PEERS_DIR)
	@$(CARGO) build --workspace --bins --locked --profile $(if $(filter dev,$(PROFILE)),lab,$(PROFILE))
	@$(TARGET_DIR)/$(if $(filter dev,$(PROFILE)),lab,$(PROFILE))/jump-bench-dataplane --rounds $(ROUNDS) --tools $(PEERS_DIR) --out $(RESULTS_DIR)

bench-sessions: ## Measures one, 1,000 and 10,000 sessions sending at once, and the memory of 100,000; as root
	@scripts/install-deps.sh build demo
	$(CARGO) bench -p jump-gateway --profile lab --locked --bench sessions -- throughput
	$(CARGO) bench -p jump-gateway --profile lab --locked --bench sessions -- memory

bench-instructions: ## Counts the instructions per packet of the data plane with callgrind, and times it
	@scripts/install-deps.sh build callgrind
	$(CARGO) bench -p jump-gateway --profile lab --locked --bench hotpath
	@scripts/count-instructions.sh $(CARGO)
