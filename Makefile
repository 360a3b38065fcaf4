# Every target sets up what it needs in .venv on its first run and again when pyproject.toml changes.
PYTHON ?= python3
JOBS ?= 2
PARTS ?= 1
PART ?= 1
VENV := .venv
BIN := $(VENV)/bin
DEMO := runs/make-demo
PYTEST := NPROC=1 $(BIN)/pytest -n $(JOBS) --dist worksteal --durations=25 --durations-min=5
# Programs are compiled in less than half the time and run more slowly; `make test-slow` compiles them as users do, but for the
# longest tests, whose rows are many programs that run for a moment.
# Parts of a program are there to be compiled in parallel, and each worker has one thread.
# XLA ends a program at a flag that it does not know, and from 0.11 on it does not know the last one.
quick = XLA_FLAGS="--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true \
  --xla_cpu_parallel_codegen_split_count=1 $$($(1) -c \
  'from jaxlib.version import __version_info__ as v; print("--xla_cpu_use_fusion_emitters=false" * (v < (0, 11)))')"

# The interpreters, the extras and the tests of `make test-oldest` and `make test-newest`: files that touch every library.
OLDEST ?= 3.11
NEWEST ?= 3.13
VERSIONED := test,report,tune,video,export,offline
# gymnax comes apart, because it holds JAX and Gymnasium back: 0.0.9 among the oldest, 1.0 among the newest.
GYMNAX := test,gymnax
SIMULATED := tests/test_simulators.py
TOUCHING := $(patsubst %,tests/test_%.py,cli run saves resume envs snapshot record report compare tune export probes)

.PHONY: help demo demo-check test test-slow test-all test-oldest test-newest lint docs pictures bench clean browser
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SECONDARY:

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 18

demo: $(VENV)/.report ## train td3 with and without PAVE, five seeds each, and test a claim on them
	$(BIN)/qscape study run make-demo
	$(BIN)/qscape landscape $(DEMO)/*/*/0
	$(BIN)/qscape compare $(DEMO) --html $(DEMO)/report.html
	@$(BIN)/python benchmarks/demo.py $(CHECK)
	@echo "Learning curves, smoothness and Q over actions: $(DEMO)/report.html, which opens in a browser. Next:"
	@echo "  $(BIN)/qscape smoothness $(DEMO) --png $(DEMO)/smoothness.png"
	@echo "  $(BIN)/qscape evaluate $(DEMO)/*/td3+pave*/0 --episodes 100"
	@echo "  $(BIN)/qscape train td7 --env HalfCheetah-v5 --steps 30000"

demo-check: CHECK = --check
demo-check: demo ## the same, and fail if this run does not bear the claim out

test: lint browser ## check style and types and run the quick tests (minutes)
	@$(call quick,$(BIN)/python) $(PYTEST) -m "not slow"

test-all: $(VENV)/.dev $(VENV)/.docs browser ## run every test (an hour and a half)
	@$(call quick,$(BIN)/python) $(PYTEST) -m "not slow"
	@$(MAKE) --no-print-directory test-slow

test-slow: $(VENV)/.dev browser ## run the tests that `make test` leaves out (an hour and more); PARTS=4 PART=2: a quarter
	@$(PYTEST) -m "slow and not long" --splits $(PARTS) --group $(PART)
	@$(call quick,$(BIN)/python) $(PYTEST) -m long --splits $(PARTS) --group $(PART)

test-oldest: $(BIN)/python ## run a part of the tests with the oldest dependencies that are allowed, on Python 3.11
	$(call with-versions,oldest-gymnax,$(OLDEST),lowest-direct,$(GYMNAX),$(SIMULATED))
	$(call with-versions,oldest,$(OLDEST),lowest-direct,$(VERSIONED),$(TOUCHING))

test-newest: $(BIN)/python ## run a part of the tests with the newest dependencies, on Python 3.13
	$(call with-versions,newest-gymnax,$(NEWEST),highest,$(GYMNAX),$(SIMULATED))
	$(call with-versions,newest,$(NEWEST),highest,$(VERSIONED),$(TOUCHING))

# A virtual environment .venv-NAME of its own, with a Python that is at hand, a resolution of uv and extras, and test files
# to run in it. pyenv's folders come first, because uv stops at a command of pyenv that stands for no version.
define with-versions
@$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.9,<1"
@export PATH="$$(echo "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/*/bin | tr ' ' ':'):$$PATH" UV_PYTHON_DOWNLOADS=never; \
$(BIN)/uv python find --system --quiet $(2) >/dev/null 2>&1 || { \
  echo "The tests of $(1) did not run: no Python $(2) is here; $(BIN)/uv python install $(2) would get one"; exit 0; }; \
$(BIN)/uv venv --quiet --clear --python $(2) .venv-$(1) && \
$(BIN)/uv pip install --quiet --python .venv-$(1) --resolution $(3) --upgrade --editable '.[$(4)]' && \
$(call quick,.venv-$(1)/bin/python) NPROC=1 .venv-$(1)/bin/python -m pytest -n $(JOBS) --dist worksteal -m "not slow" $(5) && \
echo "The tests of $(1) ran: $$(.venv-$(1)/bin/python -V), JAX $$(.venv-$(1)/bin/python -c 'import jax; print(jax.__version__)')"
endef

lint: $(VENV)/.dev ## style, import rules and types
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/lint-imports
	@$(BIN)/pyright

# Pages are tested in a real browser. Where it is missing and may not be installed, those tests are skipped.
browser:
	@for name in chromium chromium-browser google-chrome; do ! command -v $$name >/dev/null || exit 0; done; \
	  test "$$(id -u)" = 0 && may= || may="sudo -n"; \
	  if command -v apt-get >/dev/null && $$may true 2>/dev/null; then \
	    echo "Installing Chromium for the tests of pages"; \
	    $$may apt-get update -qq >/dev/null; \
	    $$may env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null 2>&1; \
	  fi; \
	  command -v chromium >/dev/null || \
	    echo "No Chromium here, so tests of pages are skipped; on Debian or Ubuntu: sudo apt-get install -y chromium"

docs: $(VENV)/.docs ## build the documentation into site/
	@$(BIN)/mkdocs build --strict

pictures: $(VENV)/.report ## make README's picture anew by the commands that README prints (some minutes)
	$(BIN)/python docs/make_pictures.py

bench: $(VENV)/.bench ## measure training speed beside other libraries
	$(BIN)/python benchmarks/throughput.py --quick

clean: ## remove caches, builds and test environments; runs/ and .venv stay
	rm -rf .venv-oldest* .venv-newest* build dist site .pytest_cache .ruff_cache .hypothesis .import_linter_cache
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
