# Control and its store.
.PHONY: bench-control

# What `make bench-control` measures: batches, reattach, million, or all of them.
BENCH ?= batches reattach million

bench-control: ## Measures control on a real etcd: batched compare-and-swaps, 10,000 reattaches, 1,000,000 records (BENCH="batches reattach million")
	@scripts/install-deps.sh build etcd
	$(CARGO) bench -p jump-control --profile lab --locked --bench control -- $(BENCH)
