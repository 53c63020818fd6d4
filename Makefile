# `make demo` and `make test` are all it takes on a machine that has make and Python 3.11, 3.12 or 3.13.
# PYTHON=/path/to/python3.12 chooses the interpreter of the virtual environment.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

BIN     := .venv/bin
READY   := .venv/.ready
SOURCES := src tests benchmarks
# One torch thread a worker: two workers that each take every core are slower than one.
QUIET   := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 MPLBACKEND=Agg
PYTEST  := $(QUIET) $(BIN)/python -m pytest -n 2

.PHONY: help setup demo test test-all test-network test-network-slow fuzz lint format docs-check bench clean distclean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-17s %s\n", $$1, $$2}' Makefile

# The setup script picks Python, makes .venv, installs; it runs again when what it depends on changes.
$(READY): pyproject.toml constraints.txt scripts/setup
	@scripts/setup

setup: ## make or refresh .venv, whatever is there; PYTHON=… changes its interpreter
	@scripts/setup

demo: $(READY) ## train a small federation on synthetic films; prints where the report is
	@$(BIN)/morphfed demo

test: lint ## lint, type check, and every test but the slow ones
	@$(PYTEST) -m "not slow"

test-all: lint ## the same with the slow tests
	@$(PYTEST) -m "not long"

# Flower holds older libraries than ours, so it gets an environment of its own.
test-network: ## the tests that need Flower and real processes; nginx too, if it is installed (NGINX=PATH)
	@VENV=.venv-network EXTRAS=dev,flower scripts/setup
	@$(QUIET) .venv-network/bin/python -m pytest -n 0 -m "not long" tests/deploy tests/federation/test_flower.py \
		tests/algorithms/test_beside_flwr.py

test-network-slow: ## twenty runs of which a process is killed at a random moment: an hour (MORPHFED_KILLS=20)
	@VENV=.venv-network EXTRAS=dev,flower scripts/setup
	@$(QUIET) .venv-network/bin/python -m pytest -n 0 -s -m long tests/deploy

fuzz: $(READY) ## read made-up and altered parcels for ten minutes
	@$(BIN)/python scripts/fuzz-parcel

lint: $(READY) ## ruff, formatting and mypy --strict
	@$(BIN)/ruff check $(SOURCES)
	@$(BIN)/ruff format --check $(SOURCES)
	@$(BIN)/mypy

format: $(READY) ## rewrite the sources as ruff would have them
	@$(BIN)/ruff check --fix $(SOURCES)
	@$(BIN)/ruff format $(SOURCES)

docs-check: $(READY) ## run the code and follow the links of README.md and docs/
	@$(QUIET) $(BIN)/python -m pytest -s tests/test_docs.py

bench: $(READY) ## one table of all benchmarks, beside other frameworks (installed in .bench/)
	@scripts/bench

clean: ## remove caches; keeps .venv and runs/
	@rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	@find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## remove the environments and .bench too
	@rm -rf .venv .venv-network .bench
