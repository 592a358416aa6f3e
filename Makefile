# Needs Python >= 3.10 and make. The first target that runs builds a virtual environment in .venv
# with the versions of constraints.txt; a change of setup.cfg or constraints.txt rebuilds it.

PYTHON ?= python3
# Another version of torch to run with, in an environment of its own: make check TORCH=2.14.1
TORCH ?=
VENV ?= .venv$(if $(TORCH),-torch-$(TORCH))
# The URL of a package index with CPU-only builds of torch. Without it the default index decides,
# which on Linux may mean some gigabytes of CUDA libraries.
TORCH_INDEX ?=
# Two workers: each test keeps about one core busy, and three took as long on two cores. The tests of
# one model share its capture, and run in the order of tests/conftest.py, which takes the longest
# first.
PYTEST_FLAGS ?= -n 2 --dist loadgroup --no-loadscope-reorder

# Threads that wait for others sleep: beside other programs, spinning ones make a step take 10 times
# as long.
export OMP_WAIT_POLICY ?= PASSIVE
# Without compiled files, each worker compiles all tests again: 6 seconds.
unexport PYTHONDONTWRITEBYTECODE

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.DEFAULT_GOAL := help
.PHONY: help check fast demo test docs installs lint format bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

check: $(STAMP) ## check style and types, and run the tests that are fast
	@$(MAKE) --jobs=2 --keep-going --no-print-directory $(if $(TORCH),,lint) fast

fast: $(STAMP)
	$(BIN)/python -m pytest $(PYTEST_FLAGS) --fast

demo: $(STAMP) ## expand, export, measure, search and serve a small trained ResNet; write a report
	$(BIN)/python examples/demo.py

test: $(STAMP) ## run all tests
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

docs: $(STAMP) ## build the documentation as a site in build/docs; it loads nothing from a network
	$(PIP) install --constraint $(VENV)/constraints.txt --editable '.[docs]'
	$(BIN)/mkdocs build --quiet
	@echo "open build/docs/index.html"

installs: $(STAMP) ## follow every install line of documents and messages, each in a new environment
	$(BIN)/python tools/check_installs.py

lint: $(STAMP) ## check style, formatting and types
	@status=0; set -x; \
	  $(BIN)/ruff check . || status=1; \
	  $(BIN)/ruff format --check . || status=1; \
	  $(BIN)/mypy || status=1; \
	  { set +x; } 2>/dev/null; exit $$status

format: $(STAMP) ## reformat the code, and mend what ruff can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## run every benchmark, some hours, or go on with it, and write benchmarks/RESULTS.md
	$(BIN)/python benchmarks/run_all.py

clean: ## remove the environment, caches and everything built
	rm -rf $(VENV) .venv-torch-* build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis src/*.egg-info
	find src tests examples benchmarks -type d -name __pycache__ -prune -exec rm -rf {} +

# torch goes first and alone: it is the one large download, and the one with an index of its own.
$(STAMP): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "fxelastic needs Python >= 3.10; name one with: make PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	sed '$(if $(TORCH),s/^torch==.*/torch==$(TORCH)/)' constraints.txt > $(VENV)/constraints.txt
	$(PIP) install --constraint $(VENV)/constraints.txt \
	  $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(PIP) install --constraint $(VENV)/constraints.txt --editable '.[dev,report,examples]'
	@touch $@
