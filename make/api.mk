# The gRPC contract for others.
.PHONY: proto-check proto-accept api-test

API_VENV = $(TARGET_DIR)/api-venv
API_PYTHON = $(API_VENV)/bin/python

$(API_VENV)/.complete: examples/python/requirements.txt
	@scripts/install-deps.sh helm
	@python3 -m venv --clear $(API_VENV)
	@$(API_PYTHON) -m pip install --quiet --disable-pip-version-check -r examples/python/requirements.txt grpcio-reflection
	@touch $@

proto-check: $(API_VENV)/.complete ## Checks the contract's style, and that no older peer would stumble over a change
	@$(API_PYTHON) scripts/check-proto.py

proto-accept: $(API_VENV)/.complete ## Makes the present contract the one that later changes are compared with
	@$(API_PYTHON) scripts/check-proto.py --accept

api-test: $(API_VENV)/.complete ## Runs the Python example client and reflection against a real control replica
	@scripts/test-api-clients.sh $(BIN_DIR) $(API_PYTHON)
