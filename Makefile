# `make demo` and `make test` do the whole set-up on a fresh Debian 12 or Ubuntu 24.04 machine; a second run skips it.
# PYTHON=... chooses the interpreter of a new .venv: by default the system's, whose headers python3-dev brings.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
MAKEFLAGS += --no-builtin-rules

PACKAGES := build-essential conntrack ethtool iproute2 ipset iptables iputils-ping libnetfilter-queue-dev \
	libnfnetlink-dev nftables openssh-client openssl procps python3-dev python3-venv redis-server tcpdump
PACKAGES += dnsmasq-base isc-dhcp-client  # a DHCP server and a client, for tests
PACKAGES += nginx-light  # an HTTP server, for tests of the proxy
PACKAGES += dnsperf wrk  # clients of DNS and of HTTP, for make bench

# Daemons of containers, and the content of their image: installed by `make test` alone, which starts its own.
DAEMONS := busybox-static docker.io netavark podman runc

# Readers of captures and man pages, shells, promtool and a Prometheus that scrapes the lab, for tests: installed by `make
# test` alone, too, and none is started as a service. Without a question, no user but root may capture with tshark
# (wireshark-common/install-setuid is false by default).
READERS := fish man-db mandoc prometheus tshark zsh

# Browser and font for tests of the service map: installed by `make test` alone.
BROWSER := chromium fonts-dejavu-core

PYTHON ?= $(shell for python in /usr/bin/python3 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)

VENV := .venv
BIN := $(VENV)/bin
LAB := $(BIN)/nfq-enforcer lab

# Every package with its version and hashes, for each Python from 3.11 on: build.txt has the tools that packages are built
# with (Cython for NetfilterQueue, which has no wheels), run.txt the program's packages, dev.txt those and the developer's
# tools; fuzz.txt adds the fuzzer, which only `make fuzz` installs. `make lock` writes them with this tool.
LOCKS := requirements/build.txt requirements/run.txt requirements/dev.txt
LOCKER := uv==0.13.9

# The stamp holds what the environment was made of. A tree that was moved, or a python that was replaced, makes it anew.
STAMP := $(VENV)/.stamp
MADE_OF := $(CURDIR) $(realpath $(BIN)/python)
ifneq ($(file <$(STAMP)),$(MADE_OF))
STALE := _stale
endif

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(STAMP) ## Install what is missing: system packages (as root), .venv, nfq_enforcer in it

# $(call timed,NAME,COMMAND) runs the command and prints how long it took.
timed = @echo "$(2)"; $(2); echo "$(1): $$SECONDS s"

# Both kinds of tests that need no root, on every core, with the coverage that is asked of core and policy.
ROOTLESS := $(BIN)/pytest tests/unit tests/property --numprocesses auto --dist worksteal \
	--cov=nfq_enforcer.core --cov=nfq_enforcer.policy --cov-branch --cov-fail-under=100

# Labs stand side by side, and their tests wait more than they compute; tests that measure time run one by one.
# Agents start some thousand times: their modules are compiled once, also where Python is told to write no bytecode.
KERNEL := PYTHONDONTWRITEBYTECODE= $(BIN)/pytest tests/integration
TOGETHER := $(KERNEL) -m 'not alone' --numprocesses 3 --dist loadfile --no-loadscope-reorder
ALONE := $(KERNEL) -m alone

.PHONY: check
check: _static ## Check format, lint, types and layering; run the tests that need no root, with coverage and fewer examples
	$(call timed,tests/unit and tests/property,$(ROOTLESS) --hypothesis-profile=check)

.PHONY: test
test: _static _daemons ## Run everything: check with all examples, then (as root) the tests that use the kernel; this is what CI runs
	$(call timed,tests/unit and tests/property,$(ROOTLESS))
	@if [ "$$(id -u)" = 0 ]; then \
		echo "$(TOGETHER)"; $(TOGETHER); echo "tests/integration together: $$SECONDS s"; SECONDS=0; \
		echo "$(ALONE)"; $(ALONE); echo "tests/integration alone: $$SECONDS s"; \
	else \
		echo "tests/integration skipped: they make network namespaces and need root (sudo make test)."; \
	fi

.PHONY: test-faults
test-faults: _root setup ## Inject faults under real traffic; print forbidden accepted, allowed cut and gaps (root); ARGS=--help
	$(BIN)/python -m tests.faults $(ARGS)

# The API server is built once for a machine, from Debian's source package (tests/kubernetes/build_apiserver.sh).
.PHONY: test-kubernetes
test-kubernetes: _root setup ## Test with a real kube-apiserver and CNI plugins; the first run builds them (root); ARGS=-k...
	tests/kubernetes/build_apiserver.sh >/dev/null || [ $$? = 3 ]
	$(BIN)/pytest tests/kubernetes $(ARGS)

.PHONY: _static
_static: setup
	$(call timed,ruff,$(BIN)/ruff format --check .; $(BIN)/ruff check .)
	$(call timed,mypy,$(BIN)/mypy)
	$(call timed,lint-imports,$(BIN)/lint-imports --no-logo)

.PHONY: fuzz
fuzz: setup ## Fuzz a part of the program with coverage guidance; ARGS="decide --seconds 600", ARGS=--help
	@$(BIN)/python -c 'import atheris' 2>/dev/null || $(BIN)/pip install --quiet --require-hashes -r requirements/fuzz.txt
	$(BIN)/python -m tests.fuzz $(ARGS)

.PHONY: demo
demo: _root setup ## Show real connections in a lab of three nodes, allowed and refused by identity (root)
	@run=d$$(( $$$$ % 100000 )); trap '$(LAB) down --run-id $$run' EXIT; \
	$(LAB) up --run-id $$run; $(LAB) demo --run-id $$run
	@printf '%s\n' "" "The same traffic as a map in the browser: build a lab, open the address that the second command prints," \
		"and run the demo in another terminal:" "  $(LAB) up --run-id map" \
		"  $(BIN)/nfq-enforcer ui --socket /run/nfq-enforcer-lab/map/n2.sock" \
		"  $(LAB) demo --run-id map" "  $(LAB) down --run-id map"

.PHONY: bench
bench: _root setup ## Measure the cost of verdicts, and of a node in a large cluster (root); ARGS=--help
	$(BIN)/python -m tests.bench $(ARGS)

# With ARGS=--upgrade the newest of everything; without, what the locks have already is kept while setup.cfg allows it.
.PHONY: lock
lock: _python ## Make the locks in requirements/ of setup.cfg anew; ARGS=--upgrade for the newest of everything
	@venv=$$(mktemp -d); trap 'rm -rf "$$venv"' EXIT; \
	$(PYTHON) -m venv $$venv; $$venv/bin/pip install --quiet $(LOCKER); \
	compile() { $$venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--no-emit-find-links --no-annotate --no-strip-extras --custom-compile-command 'make lock' "$$@" $(ARGS); }; \
	$$venv/bin/python -c 'import tomllib as t; print(*t.load(open("pyproject.toml", "rb"))["build-system"]["requires"], \
		"Cython", sep="\n")' | compile -o requirements/build.txt -; \
	compile -o requirements/dev.txt --extra dev setup.cfg; \
	compile -o requirements/run.txt -c requirements/dev.txt setup.cfg; \
	compile -o requirements/fuzz.txt -c requirements/dev.txt --extra fuzz setup.cfg; \
	git diff --stat -- requirements || true

.PHONY: vendor
vendor: ## Compare the JavaScript in the package with the pinned archives of npm; ARGS=--write takes it from them
	$(BIN)/python tools/vendor.py $(ARGS)

.PHONY: check-newest
check-newest: _python _packages ## Check types, lint and tests with the newest of everything that setup.cfg allows
	@venv=$$(mktemp -d); trap 'rm -rf "$$venv"' EXIT; $(PYTHON) -m venv $$venv; \
	$$venv/bin/pip install --quiet --upgrade --editable '.[dev]'; $$venv/bin/pip list; \
	$$venv/bin/ruff check . || failed=yes; \
	$$venv/bin/mypy --cache-dir $$venv/mypy || failed=yes; \
	$$venv/bin/pytest tests/unit tests/property --numprocesses auto --dist worksteal -p no:cacheprovider || failed=yes; \
	[ -z "$${failed-}" ]

.PHONY: man
man: setup ## Make the man pages of all commands in build/man, of their help texts
	$(BIN)/python -m nfq_enforcer.cli.man_pages build/man/man1

.PHONY: clean
clean: ## Remove .venv, caches and (as root) what labs left behind
	@if [ "$$(id -u)" = 0 ] && [ -x $(BIN)/nfq-enforcer ]; then $(LAB) down --all || true; fi
	rm -rf $(VENV) build dist *.egg-info .coverage .coverage.* \
		.hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): setup.cfg pyproject.toml $(LOCKS) $(STALE) | _packages _python
	$(if $(STALE),$(PYTHON) -m venv --clear $(VENV))
	$(BIN)/pip install --quiet --require-hashes -r requirements/build.txt
	$(BIN)/pip install --quiet --require-hashes --no-build-isolation -r requirements/dev.txt
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	$(BIN)/pip check
	@echo "$(CURDIR) $$(realpath $(BIN)/python)" > $@

.PHONY: _stale
_stale:

# $(call install,PACKAGES) installs the missing ones as root; another user is told how.
# policy-rc.d: installed daemons are not started; Docker's would change the rules and the forwarding of the host.
# RUNLEVEL=1: without systemd, a Redis server that cannot start would fail its installation; tests start their own.
define install
	missing=$$(comm -13 \
		<(dpkg-query -W -f '$${db:Status-Status} $${Package}\n' $(1) 2>/dev/null | sed -n 's/^installed //p' | sort) \
		<(printf '%s\n' $(1) | sort) | paste -sd ' '); \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" != 0 ]; then \
		echo "System packages are missing; install them with: sudo apt-get install --no-install-recommends $$missing" >&2; \
		exit 0; \
	fi; \
	export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1; \
	policy=/usr/sbin/policy-rc.d; \
	if [ ! -e $$policy ]; then \
		trap "rm -f $$policy" EXIT; printf '#!/bin/sh\nexit 101\n' >$$policy; chmod +x $$policy; \
	fi; \
	apt-get -q -o DPkg::Lock::Timeout=300 update; \
	apt-get -q -o DPkg::Lock::Timeout=300 install --yes --no-install-recommends $$missing
endef

.PHONY: _packages
_packages:
	@$(call install,$(PACKAGES))

.PHONY: _daemons
_daemons: setup
	@[ "$$(id -u)" = 0 ] || exit 0; \
	($(call install,$(DAEMONS))) || echo "The daemons of containers cannot be installed here: their tests are skipped."; \
	($(call install,$(BROWSER))) || echo "Chromium cannot be installed here: tests of the service map are skipped."; \
	($(call install,$(READERS))) || echo "Shells, and readers of captures, man pages and metrics, cannot be installed here: \
their tests are skipped."

.PHONY: _python
_python:
	@[ -n "$(PYTHON)" ] || { echo "nfq_enforcer needs Python 3.11 or newer; name one with make PYTHON=..." >&2; exit 1; }

.PHONY: _root
_root:
	@[ "$$(id -u)" = 0 ] || { \
		echo "make $(MAKECMDGOALS) makes network namespaces and needs root: sudo make $(MAKECMDGOALS)" >&2; exit 1; }
