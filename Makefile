# Everything here works from a fresh clone with python3 (3.11 or later) and pip alone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint format docs bench clean

# A virtual environment of our own, made again when pyproject.toml changes.
$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: $(VENV)/ready  ## a real image out of this machine's own programs: mounted, run, diffed, committed, handed back
	$(BIN)/python examples/demo.py

test: $(VENV)/ready  ## tests, lint, types, import directions
	$(BIN)/python -m pytest

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/ready  ## the command line's reference, from its parsers
	$(BIN)/python -m layerfs.cli.manual > docs/layerfs.1.md.new
	mv docs/layerfs.1.md.new docs/layerfs.1.md

bench: $(VENV)/ready  ## under two minutes, as root; docs/benchmarks.md has the whole
	$(BIN)/python -m benchmarks --quick --targets

clean:
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
