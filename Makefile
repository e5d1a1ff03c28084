# Two commands are enough for a start: `make demo`, then `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What is installed is decided by pyproject.toml; the stamps only save doing it twice.
INSTALLED := $(VENV)/.installed
TESTABLE := $(VENV)/.testable

.PHONY: demo test lint bench campaign accuracy clean

demo: $(INSTALLED)  ## install, hide the faces in examples/photos, say where the result is
	$(BIN)/blurguard dir examples/photos
	@echo "Look at them: $(CURDIR)/examples/photos_blurred"

test: $(TESTABLE) lint  ## everything that must hold
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(TESTABLE)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(TESTABLE)  ## speed and memory against peers; prints tables
	$(BIN)/python -m bench

campaign: $(TESTABLE)  ## the long fault runs; prints the table of docs/reliability.md
	$(BIN)/python -m bench.campaign

accuracy: $(INSTALLED)  ## recall on labeled pictures: make accuracy DATA=folder-with-faces.jsonl
	$(BIN)/python -m calibration evaluate $(DATA)

$(INSTALLED): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("blurguard needs Python 3.11 or later; give one: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(TESTABLE): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --group test
	touch $@

clean:
	rm -rf $(VENV) build dist examples/photos_blurred .pytest_cache .mypy_cache .ruff_cache .hypothesis
