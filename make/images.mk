# Images (deploy/Dockerfile) and the bill of materials.
.PHONY: image-test sbom

# Where the programs in the test's images come from: build (compiled in the image) or prebuilt (those of make build).
IMAGE_PROGRAMS ?= build

image-test: ## Builds the images without a registry, runs them locked down, brings up deploy/compose.yaml (IMAGE_PROGRAMS=build|prebuilt); as root
	@scripts/install-deps.sh images
	@PROGRAMS=$(IMAGE_PROGRAMS) PROFILE=$(PROFILE) BIN_DIR=$(BIN_DIR) scripts/image-test.sh

sbom: ## Writes the bill of materials of the programs: target/jumping-vpn.cdx.json (CycloneDX)
	@python3 scripts/sbom.py > $(TARGET_DIR)/jumping-vpn.cdx.json
	@echo $(TARGET_DIR)/jumping-vpn.cdx.json
