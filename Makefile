# Two commands for a start: "make demo" and "make test". Both install into .venv first, once.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin

.PHONY: install demo test test-slow lint wheel clean

install: $(VENV)/installed

# torch first and the package without build isolation: its build must never fetch a second torch
$(VENV)/installed: pyproject.toml setup.py $(wildcard src/dicenet/ops/cpu/csrc/*)
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

# serves every Python from 3.11 and every torch from 2.11 on
wheel: install
	DICENET_BUILD_OPS=required $(BIN)/pip wheel --quiet --no-build-isolation --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
