# Jarvis Core: `make` alone lists the targets.
.DEFAULT_GOAL := help
.PHONY: help install run test check perf lock clean
SHELL := /bin/bash

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Set again when the environment has to be made anew for a reason that no file shows.
STAMP := $(VENV)/.installed

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

install: $(STAMP) ## make .venv with all that run and test need (quick when nothing changed)

$(STAMP): config/requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo 'make: Python 3.11 or newer is needed; name one with PYTHON=python3.x' >&2; exit 1; }
	@echo "installing the pinned packages into $(VENV) ..."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r config/requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	$(BIN)/python -m compileall -q jarvis_core
	@touch $@

run: install ## start the assistant on http://localhost:8100, with everything it needs
	@exec $(BIN)/jarvis-core

test: install ## run every test against real servers
	$(BIN)/python -m pytest

check: install ## formatting, lint, types, architecture, dependency audit: what CI runs first
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_architecture.py
	tests/audit

lock: ## pin the newest versions that pyproject.toml allows
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --extra local --extra dev --generate-hashes --upgrade \
	  --no-emit-index-url --no-emit-find-links --no-header pyproject.toml config/build.in -o config/requirements.lock

clean: ## remove what make made here (never the assistant's data)
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
