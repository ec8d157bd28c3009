.PHONY: bench-transport bench-batches test-transport

# Seconds and repetitions of each measurement of `make bench-transport`.
SECONDS_EACH ?= 3
REPEATS ?= 3

test-transport: ## Tests sockets, TUN devices and transports, with real devices in network namespaces; as root
	@scripts/install-deps.sh build demo
	$(CARGO) test -p jump-transport --locked

bench-batches: ## Micro-benchmarks of packet batches: split, coalesce, UDP over loopback
	@scripts/install-deps.sh build
	$(CARGO) bench -p jump-transport --profile lab --locked --bench batches

bench-transport: ## Measures bare TUN-to-UDP forwarding between namespaces (SECONDS_EACH=n, REPEATS=n); as root
	@scripts/install-deps.sh build demo iperf
	$(CARGO) bench -p jump-transport --profile lab --locked --bench forwarding -- --seconds $(SECONDS_EACH) --repeat $(REPEATS)
