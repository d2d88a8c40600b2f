# Every target sets itself up: it makes .venv and installs the project into it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CARRIED := pytest pytest-xdist hypothesis tyro rich safetensors pybind11 setuptools nvidia-dali-cuda120 faiss-cpu
SOURCES := $(shell find csrc -type f) setup.py pyproject.toml constraints.txt $(wildcard requirements/*.txt)
# Nothing is installed whose SHA-256 is not in requirements/. Which build of torch it is, pip's settings decide: it is
# downloaded as they say, then compared.
HASHED := $(BIN)/python -m pip install --quiet --no-deps --require-hashes --requirement

.PHONY: demo test check thorough attack sanitise bench docs gpu wheels lock clean

# Cores are used by processes: docs/many-processes.md. The demo's batch has BatchNorm groups for four.
RANKS = $(shell $(BIN)/python -c 'import os, torch; print(min(4, torch.cuda.device_count() or len(os.sched_getaffinity(0))))')

demo: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/torchrun --standalone --nproc-per-node $(RANKS) -m reid_fast.train --method cc --amp

# Two processes: half of the tests wait for a compiler, a child process or a disk. Threads that wait for one another must
# not keep cores from the other one.
test thorough attack: export OMP_WAIT_POLICY := passive

test: check
	$(BIN)/python -m pytest -n 2 --dist worksteal

# Also what compiles for every GPU, runs every page of the manual and the benchmarks, and tries every combination.
thorough: check
	$(BIN)/python -m pytest -n 2 --dist worksteal --thorough

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(shell find csrc -type f; find tests -name '*.cpp' -o -name '*.h')
	$(BIN)/mypy

# Everything that may go wrong from outside, as often as CASES says: 100,000 inputs, every call on a file of a run.
# Half an hour to three quarters on two cores; `make test` has a sample.
CASES ?= 2500
ATTACK_SEED ?= $(shell date +%s)
attack: $(VENV)/.installed
	ATTACK_SEED=$(ATTACK_SEED) $(BIN)/python -m pytest tests/attack -n 2 --dist worksteal --attack $(CASES)

# The extension with the address and undefined-behaviour sanitisers in Python's tests of the clustering.
sanitise: $(VENV)/.installed
	$(BIN)/python tests/attack/sanitised.py

bench: $(VENV)/.installed
	$(BIN)/python bench/run.py --smoke

# The manual as a site, in build/site; it works offline.
docs: $(VENV)/.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

# What only a CUDA device can show, in stages: STAGES="parity ops" runs two of them.
gpu: $(VENV)/.installed
	$(BIN)/python bench/gpu.py $(STAGES)

# What a GPU machine with its own torch and no network lacks for bench/gpu.py: see CONTRIBUTING.md.
wheels: $(VENV)/.installed
	$(BIN)/python -m pip download --quiet --dest wheels --constraint constraints.txt $(CARRIED)

# Editable, so that the sources in this folder run; compiled parts are rebuilt when theirs change.
$(VENV)/.installed: $(SOURCES)
	$(PYTHON) -m venv $(VENV)
	$(HASHED) requirements/test.txt
	$(BIN)/python -m pip download --quiet --no-deps --constraint constraints.txt --dest $(VENV)/torch torch
	$(HASHED) requirements/torch.txt --no-index --find-links $(VENV)/torch
	rm -r $(VENV)/torch
	if grep -qE '^Requires-Dist: (cuda|nvidia)' $(VENV)/lib/python*/site-packages/torch-*.dist-info/METADATA; \
	then $(HASHED) requirements/torch-cuda.txt; fi
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	$(BIN)/python -m pip check
	touch $@

# After a change of constraints.txt or of the dependencies.
lock: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet uv
	PATH=$(abspath $(BIN)):$$PATH $(BIN)/python requirements/lock.py

clean:
	rm -rf $(VENV) build wheels *.egg-info reid_fast/_C*.so
