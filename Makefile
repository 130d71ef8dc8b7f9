# Two commands for a start: "make demo" and "make test". Both install into .venv first, once.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin

.PHONY: install demo test test-slow lint clean

install: $(VENV)/installed

# torch first and the package without build isolation: its build must never fetch a second torch
$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet torch torchvision "setuptools>=77"
	$(BIN)/pip install --quiet --no-build-isolation --editable ".[dev]"
	touch $@

demo: install
	$(BIN)/dicenet demo

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

test: install lint
	$(BIN)/pytest -n auto --dist worksteal

test-slow: install
	$(BIN)/pytest -n auto --dist worksteal -m slow

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
