# Needs python3 (3.11 or newer) and make; everything else is installed into .venv on first use.

PYTHON ?= python3
BIN := .venv/bin
MIN := .venv-min$(TORCH)
BENCHMARKS := $(filter-out benchmarks/_%, $(sort $(wildcard benchmarks/*.py)))

# One worker for each core, one thread for each worker. `make test SEED=7` draws the cases of that seed again.
SUITE := -m pytest -n logical $(if $(SEED),--seed=$(SEED))
# The same for Lightning's twin package, which some users import.
TWIN := LIGHTNING_PACKAGE=pytorch_lightning
test twin coverage stress min: export OMP_NUM_THREADS := 1

.PHONY: help demo test twin coverage stress browser check docs format bench min packages release-check clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 15

demo: .venv/installed ## train a small network with regularization callbacks
	$(BIN)/python examples/quickstart.py

test: .venv/installed ## run all tests and examples, with a share of the long sweeps and of the tests for pytorch_lightning
	$(BIN)/python $(SUITE)
	$(MAKE) twin

twin: .venv/installed ## run a share of the tests for pytorch_lightning
	$(TWIN) $(BIN)/python $(SUITE)

coverage: .venv/installed ## run the same and measure the coverage
	$(BIN)/coverage erase
	$(BIN)/coverage run $(SUITE)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

stress: .venv/installed ## run every case of the long sweeps, and all tests for pytorch_lightning
	$(BIN)/python $(SUITE) -m sweep --whole
	$(TWIN) $(BIN)/python $(SUITE) --whole

browser: ## install Chromium, for the tests that look at TensorBoard's pages (Debian, as root)
	apt-get update -qq
	apt-get install -qq --yes --no-install-recommends chromium chromium-driver

check: .venv/installed ## lint, types, import rules, spelling, metadata
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/validate-pyproject pyproject.toml

docs: .venv/installed ## build the documentation: docs/_build/index.html; a warning is an error
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build

format: .venv/installed ## rewrite the code in the project's format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: .venv/installed ## print the benchmark tables
	@set -e; for file in $(BENCHMARKS); do \
		echo "== $$file"; $(BIN)/python -m benchmarks.$$(basename $$file .py); done

min: $(MIN)/installed ## run the tests with the oldest supported dependencies; `TORCH=2.9.0` for the oldest torch, too
	$(MIN)/bin/python $(SUITE) -m "not gpu"
	$(TWIN) $(MIN)/bin/python $(SUITE) -m "not gpu"

packages: .venv-packages/installed ## run the tests with models of other packages
	OMP_NUM_THREADS=1 .venv-packages/bin/python -m pytest tests/integration/test_packages.py

release-check: .venv/installed ## build wheel and sources, install the wheel alone, and try it there
	rm -rf dist .venv-release
	$(BIN)/python -m hatchling build
	$(PYTHON) -m venv .venv-release
	.venv-release/bin/pip install --constraint constraints.txt dist/*.whl hypothesis pytest scipy
	RELEASE_PYTHON=.venv-release/bin/python $(BIN)/python -m pytest tests/test_release.py tests/tensorboard/test_wheel.py
	.venv-release/bin/python -m lightning_reg

clean: ## remove the environments, caches and results
	rm -rf .venv .venv-min* .venv-packages .venv-release .coverage .coverage.* htmlcov build dist docs/_build lightning_logs
	rm -rf test-results
	rm -rf .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache

# A file in each environment says that it is ready; newer requirements install again.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --constraint constraints.txt --editable '.[dev]'
	touch $@

$(MIN)/installed: pyproject.toml constraints-min.txt
	$(PYTHON) -m venv $(MIN)
	sed '$(if $(TORCH),s/^torch==.*/torch==$(TORCH)/)' constraints-min.txt > $(MIN)/constraints.txt
	$(MIN)/bin/pip install --constraint $(MIN)/constraints.txt --editable '.[dev]'
	touch $@

.venv-packages/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-packages
	.venv-packages/bin/pip install --constraint constraints.txt --editable '.[dev,packages]'
	touch $@
