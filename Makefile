# The two promises: `make demo` and `make test` set up what they need on a fresh machine and run.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow test-browser lint typecheck docs bench clean

help: ## Show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@

install: $(STAMP) ## Make the virtual environment and install dslc into it (editable, with the dev extra)

demo: $(STAMP) ## Run the demo program on the built-in model
	$(BIN)/python examples/demo.py

test: $(STAMP) ## Run the default suite (no GPU, no network)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile $(PYTEST_ARGS)

test-slow: $(STAMP) ## Run the slow tests too
	$(BIN)/python -m pytest -q -m 'not gpu and not browser' $(PYTEST_ARGS)

test-browser: $(STAMP) ## Run the tests of HTML pages in chromium (Debian: apt-get install chromium)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m browser $(PYTEST_ARGS)

lint: $(STAMP) ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy has to see the root as the package `dslc`, whatever the folder is called: a link by that name.
typecheck: $(STAMP) ## Type-check the package (strict)
	mkdir -p build/typing && ln -sfn ../.. build/typing/dslc
	MYPYPATH=build/typing $(BIN)/mypy -p dslc

docs: $(STAMP) ## Build the documentation as a site, into build/site
	mkdir -p build/typing && ln -sfn ../.. build/typing/dslc
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -q

bench: $(STAMP) ## Time the programs against their baselines
	$(BIN)/python benchmarks/programs.py

clean: ## Remove the environment and all caches
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache *.egg-info
