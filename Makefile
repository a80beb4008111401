PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN_DIR := runs/navigation_2d-$(shell date +%Y%m%d-%H%M%S)

.PHONY: install train test lint docs check

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev,docs,video]"
	touch $@

# train 2D navigation with the recommended settings, evaluate, and say where to look
train: install
	$(BIN)/python experiments/navigation_2d.py --run-dir $(RUN_DIR)

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --durations 10

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/types && mkdir -p build/types && cp -r metarl build/types/ && cp -r envs experiments build/types/metarl/
	cd build/types && ../../$(BIN)/mypy --config-file ../../pyproject.toml

# the pages of docs/, with docs/_build/html/index.html as the first one
docs: install
	$(BIN)/python docs/generate.py
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet --builder html docs docs/_build/html

check: lint test docs
