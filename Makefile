# Bloodbank. Every target sets up what it needs: a virtual environment in .venv, Python packages and, for
# `test`, RabbitMQ and Redis from the system's packages. `make` alone lists the targets.

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
RUNTIME := $(VENV)/.installed
DEVELOPMENT := $(VENV)/.installed-dev
BENCHMARKS := $(VENV)/.installed-bench
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock

.DEFAULT_GOAL := help
.PHONY: help demo serve ui explorer test unit screenshots chaos bench check format lock clean servers

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(RUNTIME) explorer ## play a day of events through the real API, ask it why, and on a terminal keep it to look at
	@$(BIN)/bb demo

serve: $(RUNTIME) explorer ## run the server on port 8682
	@$(BIN)/bb serve

ui: ## build the explorer, the page at /; needs Node.js
	@sh ui/build.sh

explorer:
	@sh ui/build.sh --if-possible

test: $(DEVELOPMENT) servers ui ## run every test, with coverage
	@sh ui/build.sh --test
	@$(BIN)/python -m coverage erase
	@BLOODBANK_TEST_EXAMPLES=100 $(BIN)/python -m pytest tests -n 2 --dist loadgroup --cov --cov-report=term --cov-fail-under=92

unit: $(DEVELOPMENT) ## run the tests that need no server
	@$(BIN)/python -m pytest tests/unit

screenshots: $(DEVELOPMENT) servers ui ## take the pictures in docs/images anew, as the tests see the explorer
	@BLOODBANK_TEST_SCREENSHOTS=docs/images $(BIN)/python -m pytest tests/browser/test_views.py -k picture -p no:randomly

SEEDS ?= 1 2 3
chaos: $(DEVELOPMENT) servers ## kill, freeze and cut off everything under load, and count what is there; about 6 minutes
	@$(BIN)/python -m tests.chaos $(SEEDS:%=--seed %) --all

bench: $(BENCHMARKS) servers ## compare with other clients and with the broker's limit, 8 minutes at most
	@$(BIN)/python -m bench

check: $(DEVELOPMENT) ## lint, format, types and layers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright
	@$(BIN)/lint-imports

format: $(DEVELOPMENT) ## format the code
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

lock: $(DEVELOPMENT) ## choose newer versions of all packages
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(BIN)/uv pip compile pyproject.toml --group dev --group bench --universal --upgrade --no-emit-index-url --no-annotate \
		--custom-compile-command "make lock" --quiet --output-file requirements.lock

clean: ## remove what the other targets made
	@rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis .import_linter_cache .coverage .coverage.* htmlcov dist build \
		ui/node_modules src/bloodbank/http/static
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

servers:
	@sh tests/servers/install.sh

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "Bloodbank needs Python 3.11 or newer. Install it, or set PYTHON=/path/to/python3."; exit 1; }
	@echo "Creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "Install what is missing and try again."; exit 1; }

$(RUNTIME): $(VENV)/bin/python pyproject.toml requirements.lock
	@echo "Installing Bloodbank"
	@$(PIP_INSTALL) --editable .
	@touch $@

$(DEVELOPMENT): $(RUNTIME) tests/requirements-test.txt
	@echo "Installing what tests and checks need"
	@$(PIP_INSTALL) --requirement tests/requirements-test.txt
	@touch $@

$(BENCHMARKS): $(RUNTIME) bench/requirements-bench.txt
	@echo "Installing what benchmarks compare with"
	@$(PIP_INSTALL) --requirement bench/requirements-bench.txt
	@touch $@
