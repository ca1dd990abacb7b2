# Every target does the set-up it needs; run again, it sets nothing up twice.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo quick test submit-demo chaos bench lint format clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED) ## make .venv with hfray and all its extras

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("hfray needs Python 3.11 or newer; set PYTHON=...") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

demo: $(INSTALLED) ## questions in, a real model's answers out: the main job in one word
	$(BIN)/python -m jobs.batch input.path=examples/questions.jsonl output.path=outputs/demo

# Two at a time: most tests wait for processes of their own.
test: $(INSTALLED) ## the whole test suite
	$(BIN)/python -m pytest -n 2 --dist loadfile

quick: $(INSTALLED) ## the tests that start no Ray, no server and no real model
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not ray and not server and not model"

submit-demo: $(INSTALLED) ## the demo as `ray job submit` sends it, to a head started for it on this machine
	$(BIN)/python examples/submit_demo.py

chaos: $(INSTALLED) ## kill workers, drivers and nodes at random, and count what is lost (minutes)
	$(BIN)/python -m tests.chaos

bench: $(INSTALLED) ## measure the engine alone and the whole job, side by side
	$(BIN)/python -m jobs.bench

lint: $(INSTALLED) ## check style, types and the one-way rule of imports
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

format: $(INSTALLED) ## put the code in its form
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

clean: ## remove what make made
	rm -rf $(VENV) outputs dist .pytest_cache .ruff_cache
