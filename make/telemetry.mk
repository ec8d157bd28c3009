# Logs, audit events, metrics, traces.

.PHONY: test-observability bench-observability

test-observability: ## Tests sinks against real receivers, metrics and alert rules with promtool, a whole story and its trace end to end; as root
	@scripts/install-deps.sh build demo observability
	$(CARGO) test -p jump-telemetry --locked
	$(CARGO) build --workspace --bins --locked
	$(CARGO) test -p jump-tests --locked --test e2e_audit --test e2e_trace
	$(CARGO) test -p jump-tests --locked --test e2e_metrics -- --include-ignored
	$(CARGO) test -p jump-telemetry --locked --test promtool -- --ignored

bench-observability: ## Compares throughput and attaches without logs, with them, and with audit receivers that fail; as root
	@scripts/install-deps.sh build demo
	$(CARGO) build --workspace --bins --profile lab --locked
	$(TARGET_DIR)/lab/jump-bench-observability
