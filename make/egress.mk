# Routed egress (docs/egress.md).
.PHONY: egress-demo compat-test

# Programs of another build, for `make compat-test`.
OTHER ?=

egress-demo: ## Loses a whole gateway machine under a download, with BIRD announcing the pool (BGP, BFD, ECMP); as root
	@scripts/install-deps.sh build demo egress
	@$(CARGO) build --workspace --bins --locked --profile $(PROFILE)
	@scripts/egress-demo.sh $(BIN_DIR)

compat-test: ## Runs two builds side by side, each with the other's control, gateway and device, through the same loss (OTHER=DIR); as root
	@test -n "$(OTHER)" || { echo "name the directory of the other build's programs: make compat-test OTHER=DIR" >&2; exit 2; }
	@scripts/install-deps.sh build demo egress
	@$(CARGO) build --workspace --bins --locked --profile $(PROFILE)
	@scripts/egress-demo.sh $(BIN_DIR) $(OTHER)
	@scripts/egress-demo.sh $(OTHER) $(BIN_DIR)
