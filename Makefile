# `make train` and `make test` need nothing but Python 3.11 or newer on the PATH.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: train test bench clean help
.DEFAULT_GOAL := help

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Expected Python 3.11 or newer as PYTHON, got $$($(PYTHON) --version)."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,bench]'
	touch $(READY)

train: $(READY)  ## train on alanine dipeptide, evaluate, draw (10 minutes on 2 cores)
	$(BIN)/python -m runs.train experiment=aldp_quick $(ARGS)

test: $(READY)  ## run linters, types, import contracts and all tests but the slow ones
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -n 2 -m 'not slow and not bench' $(ARGS)

bench: $(READY)  ## measure energies against OpenMM, then training steps against other packages; nothing beside it
	status=0; \
	$(BIN)/python -m pytest -m bench tests/bench || status=1; \
	$(BIN)/python -m runs.bench $(ARGS) || status=1; \
	exit $$status

clean:  ## remove the environment, not the runs
	rm -rf $(VENV) *.egg-info

help:
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'
