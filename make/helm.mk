# The chart's generated files. Needs Python 3 with PyYAML.
.PHONY: helm-generate helm-check

helm-generate: ## Writes the chart's README and values.schema.json from values.yaml
	python3 helm/tools/generate.py

helm-check: ## Fails when the chart's README or schema is stale
	python3 helm/tools/generate.py --check
