# make book and make test do everything from a fresh clone: they need Python 3.11 or newer, and a network for pip.
# The first one that runs makes the environment .venv; later calls install nothing until a requirement changes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install book translations test slow matrix lint format bench records gpu notebooks lab clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(INSTALLED) ## create .venv and install the pinned requirements and the package into it

$(INSTALLED): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "requirements.txt pins versions for Python 3.11 or newer, but $(PYTHON) is older or missing."; \
	  echo "Name another one: make PYTHON=python3.12 ..."; exit 1; }
	@echo "Creating $(VENV) and installing into it; this takes a few minutes."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

# The Chinese edition comes first: the English pages link to those of it that are there.
# -W reports a warning once only: after a failure the next build starts afresh.
book: $(INSTALLED) ## execute and build the book into _build/html, its Chinese edition into _build/html/zh
	{ $(BIN)/python book/_ext/editions.py build && $(BIN)/jupyter-book build . -W -n --keep-going; } || { \
	  rm -rf _build/html _build/.doctrees _build/zh_CN; exit 1; }

translations: $(INSTALLED) ## bring the catalogs in book/locale up to date with the English sources
	$(BIN)/python book/_ext/editions.py catalogs

# Two processes, since most tests keep one core busy.
test: $(INSTALLED) ## run the tests, less the slow ones
	$(BIN)/python -m pytest -m "not slow" --numprocesses 2 --dist loadfile

slow: $(INSTALLED) ## run the slow tests: CUDA kernels in the simulator, chapters as notebooks, built pages, real models
	$(BIN)/python -m pytest -m slow

matrix: $(INSTALLED) ## test the installed package with the oldest, the pinned and the newest versions
	$(BIN)/nox $(ARGS)

lint: $(INSTALLED) ## run ruff and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(INSTALLED) ## let ruff fix and format the code
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

BENCHMARK := $(BIN)/python -m numba_pool.benchmark
bench: $(INSTALLED) ## time numba_pool against torch's native op on this machine, in a few minutes
	$(BENCHMARK) --quick

# On a quiet machine. Torch reads both of the variables at its start; the processor without AVX-512 is Numba's haswell.
records: $(INSTALLED) ## measure the CPU records of the book anew: twenty minutes in which nothing else may run
	$(BENCHMARK) --output book/records/cpu.json
	THP_MEM_ALLOC_ENABLE=1 $(BENCHMARK) --studies cases --dtypes float32 --threads $$(nproc) --output book/records/cpu-huge-pages.json
	NUMBA_CPU_NAME=haswell NUMBA_CPU_FEATURES= ATEN_CPU_CAPABILITY=avx2 \
	  $(BENCHMARK) --studies cases --dtypes float32 --threads $$(nproc) --output book/records/cpu-avx2.json
	$(BENCHMARK) --quick --compile --studies cases --modes forward --dtypes float32 --output book/records/cpu-compile.json

gpu: $(INSTALLED) ## check and time the CUDA kernels on this machine's GPU, in nine minutes, into _build/gpu
	$(BIN)/python tests/cuda/gpu_report.py

notebooks: $(INSTALLED) ## write the chapters as notebooks into _build/notebooks
	$(BIN)/python book/_ext/notebooks.py _build/notebooks

lab: notebooks ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab --notebook-dir=_build/notebooks _build/notebooks/00_intro.ipynb

clean: ## remove what was built, but keep .venv
	rm -rf _build build dist .nox .pytest_cache .mypy_cache .ruff_cache .hypothesis
