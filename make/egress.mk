# Routed egress (docs/egress.md).
.PHONY: egress-demo

egress-demo: ## Loses a whole gateway machine under a download, with BIRD announcing the pool (BGP, BFD, ECMP); as root
	@scripts/install-deps.sh build demo egress
	@$(CARGO) build --workspace --bins --locked --profile $(PROFILE)
	@scripts/egress-demo.sh $(BIN_DIR)
