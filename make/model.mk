# The proof of the ownership protocol (docs/ownership.md).

.PHONY: test-model

test-model: ## Checks every reachable state of the ownership protocol at all sizes, and that deliberate mistakes are found (minutes)
	@scripts/install-deps.sh build
	$(CARGO) test --locked -p jump-tests --test model -- --include-ignored --nocapture --test-threads 1
