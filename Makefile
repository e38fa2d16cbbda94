# Every target does its own set-up: .venv/ holds the pinned versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup redis-server demo test test-faults test-planted check format stubs samples bench bench-matching bench-search bench-ingest bench-accuracy bench-explain bench-exhaustive bench-filter bench-store bench-scale bench-gpu clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

setup: $(READY) ## create the virtual environment with pinned versions

$(READY): pyproject.toml constraints.txt
	@echo "Setting up $(VENV) (pinned by constraints.txt) ..."
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -q -c constraints.txt hatchling editables
	@$(BIN)/pip install -q -c constraints.txt --no-build-isolation -e '.[service,export,dev]'
	@touch $@

# Tests run against a real server; without one they fail.
redis-server:
	@tools/redis_server.sh

demo: $(READY) ## export, serve, ingest, search and explain the sample images; pictures in build/demo/
	@$(BIN)/python tools/demo.py

test: $(READY) redis-server ## every test, with branch coverage
	@$(BIN)/python -m pytest --cov --cov-report=term

test-faults: $(READY) redis-server ## KILLS=100 kills of the server amid writes, STORE=lmdb, redis or both; SEED=0, PLANT=bug to see it found
	@KILLS=$(KILLS) SEED=$(SEED) STORE=$(STORE) PLANT=$(PLANT) PYTHONPATH=tests:tests/faults:tests/benchmarks:tools $(BIN)/python tests/faults/crashing.py

test-planted: $(READY) redis-server ## that the harness of test-faults finds bugs planted in the server
	@$(BIN)/python -m pytest -m crash tests/faults/test_crashing.py

check: $(READY) ## ruff, mypy, import layers, stub drift, buf, Dockerfile and compose schema
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/stubs.py --check
	$(BIN)/python tools/lint_contract.py
	$(BIN)/hadolint deploy/Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml
	$(BIN)/python tools/sizes.py

format: $(READY) ## let ruff format and fix what it can
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

stubs: $(READY) ## generate the gRPC stubs again
	$(BIN)/python tools/stubs.py

samples: $(READY) ## make samples/ again from the emoji sets (needs npm)
	$(BIN)/python tools/make_samples.py

bench: bench-matching bench-search bench-ingest bench-accuracy bench-explain bench-exhaustive bench-filter bench-store bench-scale bench-gpu ## every benchmark

bench-matching: $(READY) ## the kernel against the released algorithm and bare BLAS, and its errors
	@PYTHONPATH=tests:tools $(BIN)/python tests/benchmarks/matching.py

bench-search: $(READY) ## two-stage search in a gallery of 10,000
	@PYTHONPATH=tests:tools $(BIN)/python tests/benchmarks/searching.py

bench-ingest: $(READY) ## bulk ingest through the server against bare ONNX Runtime
	@PYTHONPATH=tests:tools $(BIN)/python tests/benchmarks/ingest.py

bench-accuracy: $(READY) ## P@1, R-Precision and MAP@R on the full emoji sets (needs npm)
	@PYTHONPATH=tests:tools $(BIN)/python tests/benchmarks/accuracy.py

bench-explain: $(READY) ## deletion test and localisation of explanations
	@PYTHONPATH=tests:tools $(BIN)/python tests/benchmarks/explaining.py

bench-exhaustive: $(READY) ## what proving an answer costs in a gallery of 10,000, against brute force
	@PYTHONPATH=tests:tools $(BIN)/python tests/benchmarks/exhaustive.py

bench-filter: $(READY) ## 10,000 random filters in a gallery of 100,000, against brute force
	@PYTHONPATH=tests:tools $(BIN)/python tests/benchmarks/filtering.py

bench-scale: $(READY) ## memory, disk, start and searches of SIZE images (1,000,000 unless told otherwise)
	@SIZE=$(SIZE) PYTHONPATH=tests:tools $(BIN)/python tests/benchmarks/scaling.py

bench-store: $(READY) ## ready-made features into LMDB and Redis, and rows back
	@PYTHONPATH=tests:tools $(BIN)/python tests/benchmarks/storing.py

bench-gpu: $(READY) ## the Triton kernel against its floors; says so and stops where there is no GPU
	@PYTHONPATH=tests:tools $(BIN)/python tests/benchmarks/gpu_matching.py

clean: ## remove what builds and runs left behind; keeps .venv/
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage .coverage.*
