PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN_DIR := runs/navigation_2d-$(shell date +%Y%m%d-%H%M%S)

.PHONY: install train test lint check

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev,video]"
	touch $@

# train 2D navigation with the paper's settings, evaluate, and say where to look
train: install
	$(BIN)/python experiments/navigation_2d.py --run-dir $(RUN_DIR)

test: install
	$(BIN)/python -m pytest

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/types && mkdir -p build/types && cp -r metarl build/types/ && cp -r envs experiments build/types/metarl/
	cd build/types && ../../$(BIN)/mypy --config-file ../../pyproject.toml

check: lint test
