# make demo   sets up its own environment and runs the whole main job on simulated and on real particles
# make test   sets up its own environment, then lint, types and tests
# make gpu    sets up, then everything that a CUDA card has to show in one call of minutes: gpu/card.md
# make env    only the environment: .venv/bin/polarice
# make release-check   whether a release can be made from here: versions, licences, wheel, installed anew, demo
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Waiting threads spin shortly: asleep at once they cost a third of the speed, spinning long they take others' cores.
export GOMP_SPINCOUNT ?= 20000

.PHONY: help env demo test test-slow gpu lint format docs release-check clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# make /make /p' Makefile

env: $(STAMP)

# PyTorch goes first and pinned: a wider range would fetch a newer release with gigabytes of CUDA libraries.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "polarice needs Python 3.11 or newer ($(PYTHON) is missing or older); try: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "$(PYTHON) comes without venv; install it (Debian, Ubuntu: apt-get install python3-venv)" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: env
	$(BIN)/polarice demo --o demo

test: lint
	$(BIN)/python -m pytest -q -m 'not slow'

test-slow: env
	$(BIN)/python -m pytest -q -m slow

gpu: env
	$(BIN)/polarice bench card --o gpu

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: env
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: env
	$(BIN)/python scripts/write_commands.py
	$(BIN)/python scripts/write_licences.py

release-check: env
	$(BIN)/python scripts/release_check.py

clean:
	rm -rf $(VENV) demo gpu build src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
