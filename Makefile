# Everything runs in .venv, which is made at the first call and made again when its inputs change.

PYTHON ?= python3
GPU_PYTHON ?= python3.12
JOBS ?= 2
# The tests of a file stay in one process, so that a fixture of a file is made once. The files begin
# in the order of tests/conftest.py: by their number of tests, the few that compile every kernel
# would come last, on one core alone.
PYTEST_ARGS ?= -n $(JOBS) --dist loadfile --no-loadscope-reorder
QUESTION ?= How many letters r are there in the word strawberry?

BIN := .venv/bin
BUILT_FROM := pyproject.toml setup.py constraints.txt $(shell find csrc -type f)

.PHONY: help demo test test-all bench gpu-pack lint clean

help:
	@echo "make demo      search with the bundled model: QUESTION='...' to ask your own"
	@echo "make test      the tests: JOBS=2 processes, PYTEST_ARGS='-k tree' to choose"
	@echo "make test-all  the tests, and those that are marked slow"
	@echo "make lint      ruff, mypy and clang-format"
	@echo "make bench     the CPU benchmarks: tables here and in README.md, bench/results/cpu"
	@echo "make gpu-pack  kernels and extension to be carried to a GPU machine, into .gpu-pack: docs/gpu.md"
	@echo "make clean     removes the virtual environments and all that was built"
	@echo "PYTHON=...     the interpreter to make .venv from, 3.10 or newer"
	@echo "GPU_PYTHON=... that of the GPU machine, for gpu-pack"

demo: .venv/.runtime
	$(BIN)/marco-fast solve "$(QUESTION)"

test: .venv/.dev
	$(BIN)/python -c "import marco_fast._C"
	$(BIN)/python -m pytest -m "not slow" $(PYTEST_ARGS)

test-all: .venv/.dev
	$(BIN)/python -c "import marco_fast._C"
	$(BIN)/python -m pytest $(PYTEST_ARGS)

bench: .venv/.dev
	@raw=$$(mktemp) && trap 'rm -f "$$raw"' EXIT && \
	$(BIN)/python -m pytest bench --benchmark-only --benchmark-json="$$raw" && \
	$(BIN)/python -m bench.engines.real --weights Q8_0 Q4_0 --branches 1 16 --seconds 10 && \
	$(BIN)/python -m bench.report.tables "$$raw"

gpu-pack: .venv-gpu/.ready
	.venv-gpu/bin/python -m bench.gpu.pack

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $$(find csrc -name '*.h' -o -name '*.cpp')

clean:
	rm -rf .venv .venv-gpu .gpu-pack build dist *.egg-info marco_fast/_C*.so
	rm -rf .pytest_cache .ruff_cache .mypy_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo \
	  "marco_fast needs Python 3.10 or newer: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -m venv --clear .venv || { echo \
	  "$(PYTHON) cannot make a virtual environment: install its venv package"; exit 1; }

# An install for development serves the demo too.
.venv/.dev: $(BUILT_FROM) | .venv/bin/python compiler
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev,triton]"
	@touch .venv/.runtime .venv/.dev

.venv/.runtime: $(BUILT_FROM) | .venv/bin/python compiler
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	@touch .venv/.runtime

.venv-gpu/.ready: bench/gpu/requirements.txt
	$(GPU_PYTHON) -m venv --clear .venv-gpu
	.venv-gpu/bin/python -m pip install -q -r bench/gpu/requirements.txt
	@touch .venv-gpu/.ready

.PHONY: compiler
compiler:
	@command -v $(firstword $(CXX)) > /dev/null || echo \
	  "No C++ compiler ($(CXX)): install g++ or set CXX, or everything runs on the slow PyTorch backend."
