# Jarvis Core: `make` alone lists the targets.
.DEFAULT_GOAL := help
.PHONY: help install run test test-pythons clients types check docs fuzz faults conversation home perf profile image lock clean FORCE

PYTHON ?= python3
VENV := .venv
# Always as modules: scripts in the environment would break when the folder is moved.
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip --quiet --quiet --disable-pip-version-check --no-input

# Most tests wait for something: two processes take half the time on two cores. One that fails is run once more, and
# named at the end: a machine that is busy for a moment fails nothing, and what fails now and then is not hidden.
TEST_WORKERS ?= 2

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

install: $(VENV)/.installed ## make .venv with all that run and test need (quick when nothing changed)
	@:

# Made from nothing each time, and marked when it is whole: neither an install that was cut nor an older lock file
# leaves anything behind.
$(VENV)/.packages: config/requirements.lock
	@$(PYTHON) -c '' 2>/dev/null || { echo 'make: "$(PYTHON)" does not work; name a Python, 3.11 or newer: make PYTHON=python3.12' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "make: Python 3.11 or newer is needed, and $(PYTHON) is $$($(PYTHON) -V 2>&1); name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo 'make: $(PYTHON) has no venv; on Debian and Ubuntu: apt install python3-venv' >&2; exit 1; }
	@echo 'installing the pinned packages into $(VENV) ...'
	@$(PYTHON) -m venv --clear $(VENV)
	@$(PIP) install --require-hashes --no-deps -r config/requirements.lock
	@touch $@

$(VENV)/.installed: $(VENV)/.packages pyproject.toml
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@$(RUN) -m compileall -q jarvis_core
	@touch $@

# Another Python than the one that made the environment, where it is named, makes it anew; so does one that is gone.
SAME := $(shell test -x $(RUN) && { test "$(origin PYTHON)" = file || test "$$($(PYTHON) -VV 2>&1)" = "$$($(RUN) -VV)"; } && echo yes)
ifneq ($(SAME),yes)
$(VENV)/.packages: FORCE
endif

run: install ## start the assistant on http://localhost:8100, with everything it needs
	@exec $(RUN) -m jarvis_core

test: install ## run every test against real servers
	$(RUN) -m pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder --reruns 1 -rR

test-pythons: install ## run the tests of cancelling, deadlines, stops and faults on every other CPython of this machine
	$(RUN) -m tests.pythons

# Each client where its own packages are; npm's are pinned by its lock file.
.cache/clients/python/.installed: config/clients.lock
.cache/clients/pipecat/.installed: config/clients-pipecat.lock
.cache/clients/livekit/.installed: config/clients-livekit.lock
.cache/clients/%/.installed: | install
	@echo 'installing the pinned packages into $(@D) ...'
	@$(RUN) -m venv --clear $(@D)
	@$(@D)/bin/python -m pip --quiet --quiet --disable-pip-version-check --no-input install --require-hashes --no-deps -r $<
	@touch $@

.cache/clients/node/.installed: tests/clients/package.json tests/clients/package-lock.json
	@echo 'installing the pinned packages into $(@D) ...'
	@mkdir -p $(@D) && cp $^ $(@D)
	@cd $(@D) && npm ci --silent --no-audit --no-fund
	@touch $@

CLIENTS ?= python node pipecat livekit
clients: install $(CLIENTS:%=.cache/clients/%/.installed) ## let others' clients in, unmodified, from environments of their own (CLIENTS)
	CLIENTS_NEEDED="$(CLIENTS)" $(RUN) -m pytest tests/clients

types: install .cache/clients/node/.installed ## write jarvis_core/console/api.d.ts, the types for TypeScript, from the OpenAPI document
	$(RUN) docs/make_types.py .cache/openapi.json
	.cache/clients/node/node_modules/.bin/openapi-typescript .cache/openapi.json --output jarvis_core/console/api.d.ts

check: install ## formatting, lint, types, architecture, dependency audit: what CI runs first
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy
	$(RUN) -m pytest tests/test_architecture.py
	$(RUN) tests/audit

docs: install ## write docs/settings.md and config/jarvis.toml from settings.py
	$(RUN) docs/make_settings.py

FUZZ_CASES ?= 12000
fuzz: install ## send every route and the WebSocket 12,000 requests that nobody would make (FUZZ_CASES)
	FUZZ_CASES=$(FUZZ_CASES) $(RUN) -m pytest tests/fuzz

faults: install ## a minute of failing neighbours and 50 kills against the real server, with its books kept
	FAULTS_LOAD_S=60 FAULTS_KILLS=50 FAULTS_WAYS="refused silent" $(RUN) -m pytest -s tests/system/faults

conversation: install ## ten recorded turns in real time and at ten times, 200 interruptions, 1,000 sockets in any order
	CONVERSATION_PACES=1.0,0.1 CONVERSATION_MOMENTS=200 CONVERSATION_SOCKETS=1000 $(RUN) -m pytest \
	  tests/handlers/realtime/test_conversation.py tests/handlers/realtime/test_random_sockets.py

# What is compared with and what profiles, each in an environment of its own; without one, its rows say so.
.cache/perf/peers/.installed: config/perf.lock
.cache/perf/gateway/.installed: config/perf-gateway.lock
.cache/perf/%/.installed: | install
	@echo 'installing the pinned packages into $(@D) ...'
	@$(RUN) -m venv --clear $(@D)
	@$(@D)/bin/python -m pip --quiet --quiet --disable-pip-version-check --no-input install --require-hashes --no-deps -r $<
	@touch $@

perf: install ## measure speed and memory against the aims and the peers; writes perf/RESULTS.md
	-@$(MAKE) --no-print-directory --keep-going .cache/perf/peers/.installed .cache/perf/gateway/.installed
	$(RUN) -m perf

profile: install .cache/perf/peers/.installed ## where the time goes, as a flame graph: make profile SCENARIO=chat
	$(RUN) -m perf.profile $(SCENARIO)

# As its authors pinned it, in an environment of its own: what it brings along is older than what the core has.
.cache/home/.installed: config/home.lock | install
	@echo 'installing Home Assistant into $(@D): some 600 MB, and minutes ...'
	@$(RUN) -m venv --clear $(@D)
	@$(@D)/bin/python -m pip --quiet --quiet --disable-pip-version-check --no-input install --require-hashes --no-deps -r $<
	@touch $@

.cache/mcp/.installed: config/mcp.lock | install
	@echo 'installing the pinned packages into $(@D) ...'
	@$(RUN) -m venv --clear $(@D)
	@$(@D)/bin/python -m pip --quiet --quiet --disable-pip-version-check --no-input install --require-hashes --no-deps -r $<
	@touch $@

home: install .cache/home/.installed .cache/mcp/.installed ## have a real Home Assistant switch lamps in French and English, and call a real server's tools
	HOME_PYTHON=$(CURDIR)/.cache/home/bin/python MCP_PYTHON=$(CURDIR)/.cache/mcp/bin/python $(RUN) -m pytest tests/home

image: install ## build the container image and check it, with docker, podman or buildah
	$(RUN) -m tests.image

# uv resolves for every platform at once, which pip cannot.
UV := .cache/lock/bin/python -m uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --upgrade \
  --no-emit-find-links --no-header --no-emit-index-url
# What runs on one Python alone, and is pinned by its authors.
ONE_PYTHON := .cache/lock/bin/python -m uv pip compile --quiet --python-version 3.11 --generate-hashes \
  --no-emit-find-links --no-header --no-emit-index-url
# The images have the versions that were tested.
AS_LOCKED := --no-annotate -c config/requirements.lock

lock: install ## pin the newest versions that pyproject.toml allows
	@$(RUN) -m venv .cache/lock
	@.cache/lock/bin/python -m pip --quiet --quiet --disable-pip-version-check install uv
	$(UV) --extra local --extra dev pyproject.toml config/build.in -o config/requirements.lock
	$(UV) $(AS_LOCKED) --extra embedded --extra test pyproject.toml config/build.in -o config/test.lock
	$(UV) --group audit -o config/audit.lock
	$(UV) --group fuzz -o config/fuzz.lock
	$(UV) $(AS_LOCKED) --extra embedded pyproject.toml config/image.in -o config/image.lock
	$(UV) $(AS_LOCKED) --extra local pyproject.toml config/image.in -o config/image-local.lock
	$(UV) --group perf -o config/perf.lock
	$(UV) --group clients -o config/clients.lock
	$(UV) --group clients-pipecat -o config/clients-pipecat.lock
	$(UV) --group clients-livekit -o config/clients-livekit.lock
	cd tests/clients && npm update --package-lock-only --silent
	$(ONE_PYTHON) config/home.in -o config/home.lock
	$(ONE_PYTHON) --upgrade config/mcp.in -o config/mcp.lock
	$(UV) --group perf-gateway -o config/perf-gateway.lock

clean: ## remove what make made here (never the assistant's data)
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
