# Every target installs what it needs first. A second run installs nothing again.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEMO_INSTALLED := $(VENV)/.installed-demo

# Jobs and tests start many Python processes. Without byte code, each would compile the same files again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install demo quick test lint docs format submit-demo chaos bench constraints audit clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED) ## create .venv with hfray, all its extras and the exact versions of constraints.txt

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("hfray needs Python 3.11 or newer; set PYTHON=...") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

# The demo needs neither torch nor transformers, which take most of the time and of the disk.
$(DEMO_INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -e $(INSTALLED) || $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[openvino]'
	@touch $@

demo: $(DEMO_INSTALLED) ## answer 24 questions with a real model on this machine's CPU
	$(BIN)/python -m jobs.batch input.path=examples/questions.jsonl output.path=outputs/demo

# After the death of a test process the run ends with a failure; pytest-xdist would otherwise wait for ever.
# tests/conftest.py decides the order of the files.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

quick: $(INSTALLED) ## run the tests that start no Ray, no server and no real model
	$(PYTEST) -m "not ray and not server and not model"

# Two test processes: each starts its own Ray, and more of them starve each other on two cores.
test: $(INSTALLED) ## run all tests
	$(PYTEST)

lint: $(INSTALLED) ## check style, types and the import rule
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

docs: $(INSTALLED) ## write docs/settings.md from the settings classes and conf/
	$(BIN)/python -m hfray.tools.settings_page

format: $(INSTALLED) ## fix the style
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

submit-demo: $(INSTALLED) ## run the demo through `ray job submit`, on a Ray head started for it on this machine
	$(BIN)/python examples/submit_demo.py

chaos: $(INSTALLED) ## disturb jobs at random moments, and count the lost rows (takes minutes)
	$(BIN)/python -m tests.chaos

bench: $(INSTALLED) ## measure the engine alone and the whole job, side by side
	$(BIN)/python -m jobs.bench

# Run the whole suite afterwards: the file promises that the suite passes with these versions.
constraints: ## upgrade .venv to the newest versions that pyproject.toml allows, and write them to constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade --upgrade-strategy eager --editable '.[dev]'
	$(BIN)/python .ci/freeze.py > constraints.txt.new
	mv constraints.txt.new constraints.txt
	@touch $(INSTALLED)

audit: ## look for known vulnerabilities in the versions of constraints.txt
	PYTHON=$(PYTHON) .ci/audit

clean: ## remove everything that make created
	rm -rf $(VENV) .audit outputs dist .pytest_cache .ruff_cache
