PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
JOBS ?= 2
KERNELS := $(wildcard csrc/*.* csrc/*/*.*)
CXX_SOURCES := $(KERNELS) $(filter-out %.py,$(wildcard tests/simt/*.*))
export MAX_JOBS ?= $(JOBS)

.DEFAULT_GOAL := help
.PHONY: help install demo test bench tables lint format docs gpu-check clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# Dependencies and build: again whenever a source of the compiled library or the project file changes.
$(STAMP): $(BIN)/python pyproject.toml setup.py $(KERNELS)
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/pip install torch torchvision
	$(BIN)/pip install setuptools wheel ninja
	$(BIN)/pip install --no-build-isolation --verbose -e ".[train,editing,dev,docs]" > $(VENV)/build.log 2>&1 || { tail -50 $(VENV)/build.log; exit 1; }
	$(BIN)/pip install --no-deps torchattacks==3.5.1  # what it depends on is an old requests
	@grep -h "^ *genimg_fast: " $(VENV)/build.log || true
	@touch $(STAMP)

install: $(STAMP)  ## Create .venv, install the dependencies, build the package

demo: $(STAMP)  ## Train a DCGAN on real handwritten digits (a minute or two on two idle cores)
	$(BIN)/python -m genimg_fast demo

test: $(STAMP)  ## Run the tests
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

bench: $(STAMP)  ## Time the kernels against eager PyTorch and torch.compile, in ten minutes
	$(BIN)/python -m genimg_fast bench ops --time-limit 10

tables: $(STAMP)  ## Write the tables of README and docs from the files in benchmarks/results
	$(BIN)/python benchmarks/tables.py

lint: $(STAMP)  ## Check style, types and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CXX_SOURCES)

format: $(STAMP)  ## Rewrite Python and C++ sources in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_SOURCES)

docs: $(STAMP)  ## Build the documentation into build/docs; what Sphinx warns of is an error
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs build/docs
	@echo build/docs/index.html

gpu-check:  ## Check and time the CUDA kernels on this machine's GPU; the package has to be built
	$(or $(wildcard $(BIN)/python),$(PYTHON)) benchmarks/gpu_check.py

clean:  ## Remove everything that the targets made
	rm -rf $(VENV) build dist *.egg-info genimg_fast/_C.so .pytest_cache .mypy_cache .ruff_cache .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
