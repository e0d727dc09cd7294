# Everything runs from here on a machine that has Python 3.11 and make.
#   make demo    install, run the demo, end with the report's path
#   make test    install everything, run every test
#   make lint    ruff and mypy
#   make bench   the benchmark table        make corpus   the diagnosis table
#   make docs    the documentation, into site/

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
INPUTS := pyproject.toml setup.py constraints.txt $(wildcard src/steadygrad/kernels/*.c src/steadygrad/kernels/*.h src/steadygrad/jax/*.c)

# Two workers: frameworks are memory-hungry, and their own threads would fight for the cores.
WORKERS ?= 2
export OMP_NUM_THREADS ?= 1

.PHONY: demo test lint bench corpus docs clean

demo: $(VENV)/.demo
	$(BIN)/steadygrad demo

test: $(VENV)/.dev
	@command -v chromium >/dev/null 2>&1 || command -v chromium-browser >/dev/null 2>&1 || \
	  command -v google-chrome >/dev/null 2>&1 || \
	  printf '\n*** Chromium is missing: the browser tests of the report will be SKIPPED.\n*** Install it (Debian: apt-get install chromium) to run them.\n\n'
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks

corpus: $(VENV)/.dev
	$(BIN)/python -m corpus

docs: $(VENV)/.docs
	$(BIN)/mkdocs build --strict

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --upgrade pip

$(VENV)/.demo: $(INPUTS) | $(VENV)/bin/python
	$(INSTALL) --editable '.[demo]'
	touch $@

$(VENV)/.dev: $(INPUTS) | $(VENV)/bin/python
	$(INSTALL) --editable '.[dev]'
	touch $@ $(VENV)/.demo

$(VENV)/.docs: $(VENV)/.dev
	$(INSTALL) --editable '.[docs]'
	touch $@

clean:
	rm -rf build dist site .pytest_cache .mypy_cache .ruff_cache
