# Every target sets itself up: it makes .venv and installs the project into it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(shell find csrc -type f) setup.py pyproject.toml constraints.txt

.PHONY: demo test check bench gpu clean

demo: $(VENV)/.installed
	$(BIN)/python -m reid_fast.train --method cc --amp

# Two processes: half of the tests wait for a compiler, a child process or a disk.
test: check
	$(BIN)/python -m pytest -n 2 --dist worksteal

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(shell find csrc -type f; find tests -name '*.cpp' -o -name '*.h')
	$(BIN)/mypy

bench: $(VENV)/.installed
	$(BIN)/python bench/run.py --smoke

# What only a CUDA device can show: the tests marked gpu, then the benchmarks with their results files.
gpu: $(VENV)/.installed
	$(BIN)/python -m pytest -m gpu
	$(BIN)/python bench/ops.py
	$(BIN)/python bench/run.py

# Editable, so that the sources in this folder run; compiled parts are rebuilt when theirs change.
$(VENV)/.installed: $(SOURCES)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info reid_fast/_C*.so
