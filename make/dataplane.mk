# The data plane beside other tunnels (docs/dataplane.md).
.PHONY: bench-dataplane

# Rounds of `make bench-dataplane`, and where the other tunnels are installed and the results go.
ROUNDS ?= 5
PEERS_DIR ?= .run/peers
RESULTS_DIR ?= .run/bench-dataplane

bench-dataplane: ## Measures this tunnel beside wireguard-go, gotatun, boringtun, OpenVPN and nebula (ROUNDS=n, PROFILE=lab); as root
	@scripts/install-deps.sh build demo
	@scripts/install-peers.sh $(PEERS_DIR)
	@$(CARGO) build --workspace --bins --locked --profile $(if $(filter dev,$(PROFILE)),lab,$(PROFILE))
	@$(TARGET_DIR)/$(if $(filter dev,$(PROFILE)),lab,$(PROFILE))/jump-bench-dataplane --rounds $(ROUNDS) --tools $(PEERS_DIR) --out $(RESULTS_DIR)
