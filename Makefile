# `make demo` and `make test` do the whole set-up on a fresh Debian 12 or Ubuntu 24.04 machine; a second run skips it.
# PYTHON=... chooses the interpreter of a new .venv: by default the system's, whose headers python3-dev brings.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
MAKEFLAGS += --no-builtin-rules

PACKAGES := build-essential conntrack ethtool iproute2 ipset iptables iputils-ping libnetfilter-queue-dev \
	libnfnetlink-dev openssh-client openssl procps python3-dev python3-venv redis-server tcpdump

PYTHON ?= $(shell for python in /usr/bin/python3 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)

VENV := .venv
BIN := $(VENV)/bin
LAB := $(BIN)/nfq-enforcer lab

# The stamp holds what the environment was made of. A tree that was moved, or a python that was replaced, makes it anew.
STAMP := $(VENV)/.stamp
MADE_OF := $(CURDIR) $(realpath $(BIN)/python)
ifneq ($(file <$(STAMP)),$(MADE_OF))
STALE := _stale
endif

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-7s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(STAMP) ## Install what is missing: system packages (as root), .venv, nfq_enforcer in it

.PHONY: check
check: setup ## Check format, lint, types and layering; run the tests that need no root, with coverage
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/pytest tests/unit tests/property --cov=nfq_enforcer.core --cov=nfq_enforcer.policy \
		--cov-branch --cov-fail-under=100

.PHONY: test
test: check ## Run everything: check, then (as root) the tests that use the kernel; this is what CI runs
	@if [ "$$(id -u)" = 0 ]; then \
		echo "$(BIN)/pytest tests/integration"; $(BIN)/pytest tests/integration; \
	else \
		echo "tests/integration skipped: they make network namespaces and need root (sudo make test)."; \
	fi

.PHONY: demo
demo: _root setup ## Show real connections in a lab of three nodes, allowed and refused by identity (root)
	@run=d$$(( $$$$ % 100000 )); trap '$(LAB) down --run-id $$run' EXIT; \
	$(LAB) up --run-id $$run; $(LAB) demo --run-id $$run

.PHONY: bench
bench: _root setup ## Measure the cost of verdicts, and of a node in a large cluster (root); ARGS=--help
	$(BIN)/python -m tests.bench $(ARGS)

.PHONY: clean
clean: ## Remove .venv, caches and (as root) what labs left behind
	@if [ "$$(id -u)" = 0 ] && [ -x $(BIN)/nfq-enforcer ]; then $(LAB) down --all || true; fi
	rm -rf $(VENV) build dist *.egg-info .coverage .coverage.* \
		.hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): setup.cfg pyproject.toml $(STALE) | _packages
	@[ -n "$(PYTHON)" ] || { echo "nfq_enforcer needs Python 3.11 or newer; name one with make PYTHON=..." >&2; exit 1; }
	$(if $(STALE),$(PYTHON) -m venv --clear $(VENV))
	$(BIN)/pip install --quiet --editable '.[dev]'
	@echo "$(CURDIR) $$(realpath $(BIN)/python)" > $@

.PHONY: _stale
_stale:

# RUNLEVEL=1: without systemd, a Redis server that cannot start would fail its installation; tests start their own.
.PHONY: _packages
_packages:
	@missing=$$(comm -13 \
		<(dpkg-query -W -f '$${db:Status-Status} $${Package}\n' $(PACKAGES) 2>/dev/null | sed -n 's/^installed //p' | sort) \
		<(printf '%s\n' $(PACKAGES) | sort) | paste -sd ' '); \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" != 0 ]; then \
		echo "System packages are missing; install them with: sudo apt-get install --no-install-recommends $$missing" >&2; \
		exit 0; \
	fi; \
	export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1; \
	apt-get -q -o DPkg::Lock::Timeout=300 update; \
	apt-get -q -o DPkg::Lock::Timeout=300 install --yes --no-install-recommends $$missing

.PHONY: _root
_root:
	@[ "$$(id -u)" = 0 ] || { \
		echo "make $(MAKECMDGOALS) makes network namespaces and needs root: sudo make $(MAKECMDGOALS)" >&2; exit 1; }
