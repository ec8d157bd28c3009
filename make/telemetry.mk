# Logs, audit events, metrics, traces.

.PHONY: test-observability

test-observability: ## Tests sinks against real receivers, metrics and alert rules with promtool; as root
	@scripts/install-deps.sh build observability
	$(CARGO) test -p jump-telemetry --locked
	$(CARGO) test -p jump-telemetry --locked --test promtool -- --ignored
