# Each target sets up what it needs: Python 3.11 or later and make are enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help cifar10 test lint wheel parity bench memory clean

help:
	@echo "make cifar10   train the tutorial CNN on CIFAR-10 (the generated shapes where there is no CIFAR-10)"
	@echo "make test      run all tests"
	@echo "make lint      ruff and mypy --strict"
	@echo "make wheel     build a wheel, install it into an empty environment and train with it"
	@echo "make parity    compare every layer, loss and optimiser with PyTorch"
	@echo "make memory    peak memory of loss_and_grad at batch 256 and 4096, and the time that an import takes"
	@echo "make bench     time nnlite against PyTorch, Keras, JAX and scikit-learn"

$(VENV)/.%: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[$*]"
	touch $@

cifar10: $(VENV)/.examples
	$(BIN)/python examples/cifar10.py --model tutorial

test: $(VENV)/.test
	$(BIN)/python -m pytest

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

wheel: $(VENV)/.dev
	$(BIN)/python benchmarks/wheel.py

parity: $(VENV)/.bench
	$(BIN)/python benchmarks/parity.py --out benchmarks/results/parity.md

memory: $(VENV)/.test
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/import_time.py

bench: $(VENV)/.bench
	$(BIN)/python benchmarks/peers.py --json benchmarks/results/peers.json --markdown benchmarks/results/peers.md

clean:
	rm -rf $(VENV) build dist out .pytest_cache .hypothesis .mypy_cache .ruff_cache
