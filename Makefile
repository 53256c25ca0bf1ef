# Two commands are enough: `make demo` and `make test`. Each sets up what it needs, and is quick the second time.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_DATA := test -f build/demo/data/manifest.json || $(BIN)/ft data prepare builtin:bfcl --out build/demo/data
BENCHMARKS := $(filter-out benchmarks/peers.py benchmarks/publish.py,$(wildcard benchmarks/*.py))
# A process for each core; ARGS="-n 0" for one alone (--pdb). tests/conftest.py says which tests stay together.
SIDE_BY_SIDE := -n logical --maxprocesses 4 --dist loadscope --no-loadscope-reorder
export HF_HUB_DISABLE_TELEMETRY := 1
# Every command imports torch anew; where compiled modules may not be kept, each pays 4 seconds for compiling it.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo demo-bakeoff test test-fast test-slow lint format bench docs dist sbom audit coverage clean help

help:            ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

setup:           ## environment, pinned dependencies, embedded model and data
	@PYTHON=$(PYTHON) bash requirements/setup.sh

demo: setup      ## the main job, end to end, for real; FRESH=1 runs every stage again
	@$(BIN)/python examples/demo/demo.py $(if $(FRESH),--fresh)

demo-bakeoff: setup ## prompt, few-shot, RAG and LoRA measured on the same questions, at most 30 minutes
	@$(DEMO_DATA)
	@$(BIN)/ft bakeoff --task examples/demo/task.yaml --train build/demo/data --arms prompt,few_shot,rag,lora \
	  --config examples/demo/bakeoff.yaml --out build/bakeoff --budget-minutes 27 --force

test: setup      ## fast tests and the core end-to-end ones
	$(BIN)/pytest $(SIDE_BY_SIDE) -m "not slow" $(ARGS)

test-fast: setup ## without the end-to-end ones
	$(BIN)/pytest $(SIDE_BY_SIDE) -m "not slow and not e2e" $(ARGS)

test-slow: setup ## real but slow
	$(BIN)/pytest $(SIDE_BY_SIDE) -m slow $(ARGS)

lint: setup      ## format, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	bash requirements/typecheck.sh
	PYTHONPATH=build/types $(BIN)/lint-imports

format: setup    ## rewrite formatting and imports
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

bench: setup     ## the scripts of benchmarks/, short form
	@$(DEMO_DATA)
	@for script in $(BENCHMARKS); do echo "== $$script"; $(BIN)/python $$script --short || failed="$$failed $$script"; done; \
	  test -z "$$failed" || { echo "failed:$$failed" >&2; exit 1; }

docs: setup      ## the command reference, from the code
	@$(BIN)/python docs/cli_reference.py

dist: setup      ## wheel and source archive in dist/
	@rm -rf dist
	@$(BIN)/uv build --quiet --out-dir dist
	@ls -l dist

# What follows runs tools in environments of their own; `audit` asks a vulnerability database over the network.
sbom: setup      ## SBOM (CycloneDX) and licences of all that is installed, in build/
	@mkdir -p build
	@$(BIN)/uv tool run --from cyclonedx-bom==7.* cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml \
	  --of JSON -o build/sbom.cdx.json
	@$(BIN)/uv tool run pip-licenses==5.* --python $(BIN)/python --format json --with-urls --output-file build/licences.json

audit: setup     ## known vulnerabilities of what is installed
	@$(BIN)/uv pip freeze --exclude-editable > build/frozen.txt
	@$(BIN)/uv tool run pip-audit==2.* --no-deps --disable-pip -r build/frozen.txt

# Only what is installed beside the tests is measured in the processes that they start: there for the run, then gone.
coverage: setup  ## branches that `make test` reaches (ARGS="tests/core" for a part)
	@trap '$(BIN)/uv pip uninstall --quiet coverage' EXIT; rm -rf build/coverage && mkdir -p build/coverage; \
	$(BIN)/uv pip install --quiet coverage==7.*; \
	$(BIN)/coverage run -m pytest $(SIDE_BY_SIDE) -m "not slow" $(ARGS); failed=$$?; \
	$(BIN)/coverage combine --quiet && $(BIN)/coverage report && exit $$failed

clean:           ## remove what was built (the environment stays)
	rm -rf build
