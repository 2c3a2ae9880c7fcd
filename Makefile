# One environment in .venv, installed from wheels at the exact versions of requirements/*.txt.
# Everything below works on a fresh machine with Python 3.11 and make.

PYTHON ?= $(or $(shell command -v python3.11),python3)
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
TESTS ?= tests
WORKERS ?= 2

export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

INSTALLED := $(VENV)/.installed

.PHONY: help setup demo test lint bench lock clean

help: ## Show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "make %-8s %s\n", $$1, $$2}'

setup: $(INSTALLED) ## Make the virtual environment and install everything into it

# torch comes first and alone: a range would take a build with gigabytes of CUDA.
$(INSTALLED): pyproject.toml requirements/torch.txt requirements/dev.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --only-binary=:all: --requirement requirements/torch.txt
	$(BIN)/python -m pip install --quiet --only-binary=:all: --requirement requirements/dev.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	$(BIN)/python -m pip check
	@touch $@

demo: setup ## Run the whole loop on this machine; ARGS="--help" shows the options
	@$(BIN)/clickloop demo $(ARGS)

# A file's tests stay together, for they share what they have set up; the short ones come last and even things out.
test: setup ## Run every test; TESTS=tests/unit runs the fast ones
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder $(TESTS) $(ARGS)

lint: setup ## Check style, types and architecture
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_architecture.py

bench: setup $(VENV)/stock-trainer ## Run the benchmarks; ARGS goes to each
	@for file in $$(ls benchmarks/[a-z]*.py | grep -v common); do \
		$(BIN)/python -m benchmarks.$$(basename $$file .py) $(ARGS) || exit 1; \
	done

$(VENV)/stock-trainer: requirements/stock-trainer.txt
	$(BIN)/python -m pip install --quiet --only-binary=:all: --no-deps --upgrade --target $@ --requirement $<
	@touch $@

lock: setup ## Write requirements/dev.txt anew from pyproject.toml
	$(BIN)/python -m piptools compile --quiet --upgrade --strip-extras --no-header --no-annotate \
		--no-emit-index-url --no-emit-find-links --no-emit-trusted-host \
		--unsafe-package torch --unsafe-package clickloop --unsafe-package setuptools --unsafe-package pip \
		--constraint requirements/torch.txt --extra dev --output-file requirements/dev.txt pyproject.toml

clean: ## Remove the environment, the demo's data and every cache
	rm -rf $(VENV) .clickloop build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
