# make demo   the main job on this machine: real VM, sealed, traced, destroyed
# make test   every test, real machines included
# make check  lint, types, import contracts, generated diagrams
# make bench  measurements, each beside its floor
# make chaos  a thousand faults on simulated machines, thirty on real ones; a table of what was lost (SEED=N, FAULTS=N)
# Each installs what it needs (Debian packages with apt, as root or through sudo; a virtual environment in .venv).

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test check contracts bench chaos packages venv image

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PACKAGES := e2fsprogs gcc libc6-dev mmdebstrap openssh-client postgresql python3-venv qemu-system-x86 qemu-utils strace uidmap

help:
	@sed -n 's/^# //p' Makefile

packages:
	@missing=(); \
	for package in $(PACKAGES); do \
	  dpkg-query -W -f='$${Status}' "$$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$$package"); \
	done; \
	if (($${#missing[@]})); then \
	  command -v apt-get >/dev/null || { echo "not a Debian or Ubuntu system: install the equivalents of $${missing[*]}" >&2; exit 1; }; \
	  sudo=; if (($$(id -u))); then sudo=sudo; fi; \
	  echo "installing $${missing[*]}"; \
	  $$sudo apt-get update -qq; \
	  $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$${missing[@]}" >/dev/null; \
	fi

venv: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml | packages
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Mayfly needs Python 3.11 or newer; say which with make PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "installing Python packages into $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: packages venv
	@$(BIN)/python examples/demo.py

image: packages venv
	@$(BIN)/mayfly image build debian-12 --if-missing

## Two at once: real machines, which share one cloud, with the campaigns; and all else.
test: packages venv
	@mkdir -p build; \
	$(BIN)/pytest tests/machines tests/chaos >build/test-machines.log 2>&1 & machines=$$!; \
	trap 'kill $$machines 2>/dev/null || true' EXIT; \
	status=0; \
	$(BIN)/pytest --ignore tests/machines --ignore tests/chaos || status=$$?; \
	wait $$machines || status=$$?; \
	cat build/test-machines.log; \
	exit $$status

check: packages venv contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python -m orchestrator.domain.diagram --check docs/reference/states.md

contracts: packages venv
	@$(BIN)/lint-imports

bench: packages venv
	@$(BIN)/python -m bench

SEED ?= 1
FAULTS ?= 1000
REAL_FAULTS ?= 30

chaos: packages venv
	@$(BIN)/python -m tests.chaos --seed $(SEED) --faults $(FAULTS) --real-faults $(REAL_FAULTS)
