# Every target sets up what it needs in .venv on its first run and again when pyproject.toml changes.
PYTHON ?= python3
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help demo test lint docs bench clean
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SECONDARY:

help: ## show this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 14

demo: $(VENV)/.report ## train TD3 on Pendulum-v1 and draw its learning curve (minutes)
	$(BIN)/qscape train td3 --env Pendulum-v1 --steps 10000 --eval-every 1000 --out runs/make-demo --overwrite
	$(BIN)/qscape plot runs/make-demo --png runs/make-demo/curve.png
	@echo
	@echo "A trained agent and its learning curve: runs/make-demo, runs/make-demo/curve.png"
	@echo "Next:"
	@echo "  . $(BIN)/activate"
	@echo "  qscape evaluate runs/make-demo --episodes 10"
	@echo "  qscape train td7 --env HalfCheetah-v5 --steps 30000"
	@echo "  qscape list"

test: lint ## lint, type-check and run every test
	@NPROC=1 $(BIN)/pytest -n $(JOBS) --dist worksteal --durations=25 --durations-min=5

lint: $(VENV)/.dev ## style, import rules and types
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/lint-imports
	@$(BIN)/pyright

docs: $(VENV)/.docs ## build the documentation into site/
	@$(BIN)/mkdocs build --strict

bench: $(VENV)/.bench ## measure training speed beside other libraries
	$(BIN)/python benchmarks/throughput.py --quick

clean: ## remove caches and builds; runs/ and .venv stay
	rm -rf build dist site .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# .venv/.EXTRA stands for "installed with that extra".
$(VENV)/.%: pyproject.toml | $(BIN)/python
	@echo "Installing qscape[$*] into $(VENV); the first time takes a minute or more"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --use-pep517 --editable '.[$*]'
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "qscape needs Python 3.11 or newer: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "$(PYTHON) cannot make virtual environments; on Debian or Ubuntu: sudo apt-get install -y python3-venv" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)
