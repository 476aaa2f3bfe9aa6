# The commands of a day. CI runs the same: .ci/run is `make test`.

PYTHON ?= $(shell bash scripts/find-python 3.11)
# The pin selects the CPU build; without it pip would fetch gigabytes of CUDA.
TORCH = torch==2.13.0
BIN = .venv/bin
CHECK_PYTHON = test "$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>&1)" = 3.11 || \
	{ echo "Python 3.11 is needed and was not found: install it, or say make PYTHON=/path/to/python3.11"; exit 1; }

.DEFAULT_GOAL = help
.PHONY: help setup demo test lint fmt quick test-pythons bench bench-floors clean

help:  ## what can be done here
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: .venv/.installed  ## create .venv with everything pinned

.venv/.installed: pyproject.toml constraints.txt
	@$(CHECK_PYTHON)
	@echo "Installing into .venv with $(PYTHON) (once)"
	@bash scripts/venv $(PYTHON) .venv
	@$(BIN)/pip install -q $(TORCH) -c constraints.txt
	@$(BIN)/pip install -q -e '.[dev]' -c constraints.txt
	@touch $@

demo: setup  ## the main job: save, kill, come back
	$(BIN)/holdfast demo

test: lint  ## everything CI runs: lint, all tests, another Python
	$(BIN)/pytest
	@bash scripts/test-pythons --first

quick: setup  ## unit tests only, seconds
	$(BIN)/pytest -q tests/unit

lint: setup  ## walls, types, style
	@$(BIN)/lint-imports --no-logo
	$(BIN)/mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check

fmt: setup  ## format, and mend what can be mended
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

test-pythons:  ## torch-free tests on every other Python found
	@bash scripts/test-pythons

bench: .venv-bench/.installed  ## the table: beside other libraries, in an environment of its own (ARGS=--quick)
	.venv-bench/bin/python benchmarks/compare.py $(ARGS)

bench-floors: .venv-bench/.installed  ## against what the hardware allows (ARGS=--quick)
	.venv-bench/bin/python benchmarks/run.py $(ARGS)

.venv-bench/.installed: pyproject.toml constraints.txt benchmarks/requirements.txt
	@$(CHECK_PYTHON)
	@bash scripts/venv $(PYTHON) .venv-bench
	@.venv-bench/bin/pip install -q $(TORCH) -c constraints.txt
	@.venv-bench/bin/pip install -q -e . -r benchmarks/requirements.txt -c constraints.txt
	@touch $@

clean:  ## remove environments, caches and build outputs
	rm -rf .venv .venv-* build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find src tests -name __pycache__ -type d -exec rm -rf {} +
