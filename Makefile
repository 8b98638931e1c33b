# Each target but `gpu` sets up what it needs: Python 3.11 or later and make are enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS ?= requirements/locked.txt
MACHINE ?= here

.PHONY: help hosts cifar10 test privacy privately lowest lint dist parity interop differential bench memory accuracy kernels mutants processors sanitize gpu kills fuzz soak stream search gallery docs clean

help:
	@echo "make cifar10   train the tutorial CNN on CIFAR-10 (the generated shapes where there is no CIFAR-10)"
	@echo "make test      run all tests"
	@echo "make privacy   run the tests of private training, in an environment of their own (dp-accounting pins old versions)"
	@echo "make lowest    run all tests with every dependency at its lower bound"
	@echo "make lint      ruff and mypy --strict"
	@echo "make dist      the sdist and the wheels of a release, each tried in an empty environment (Linux, x86-64; 5 minutes)"
	@echo "make parity    compare layers, losses and optimisers with PyTorch (all but Dropout and Muon)"
	@echo "make interop   models of Keras, PyTorch and ONNX in nnlite and back, beside these libraries, with real files (6 minutes)"
	@echo "make differential  train 2,000 random networks beside PyTorch in float64 (a minute)"
	@echo "make memory    peak memory of loss_and_grad at batch 256 and 4096, and the time that an import takes"
	@echo "make accuracy  the recipe of 90% on CIFAR-10: five seeds, nnlite and PyTorch in turn (an hour)"
	@echo "make kernels   plant bugs in the CUDA and C kernels and show that the tests catch each (needs g++ and a C compiler, no GPU)"
	@echo "make processors  the same bits from GCC and Clang, at every vector width, and on ARM64 (emulated; 15 minutes)"
	@echo "make sanitize  run the tests of the C kernels at every vector width under AddressSanitizer and UBSan"
	@echo "make mutants   change the code in 300 small ways and show that the tests notice (an hour)"
	@echo "make gpu       results, speed, kernels and tests on a GPU, 8 minutes (sets up nothing: CuPy must be there)"
	@echo "make kills     kill training processes at random moments, resume them, compare the results"
	@echo "make hosts     train on two hosts, network namespaces of this one, and cut their cable (as root; half a minute)"
	@echo "make fuzz      read 20,000 damaged files"
	@echo "make soak      train for 2,000 steps and watch the memory"
	@echo "make stream    train from a sparse file of 20 GB and print the peak of memory (10 minutes)"
	@echo "make search    a grid search in one, two and more worker processes: its time, and the same scores"
	@echo "make gallery   train a small CNN and draw the pictures of docs/insight.md (a minute)"
	@echo "make docs      build the documentation site in site/, its formulas and fonts by npm (20 seconds)"
	@echo "make bench     time nnlite against PyTorch, Keras, JAX, scikit-learn and onnxruntime; MACHINE=zen4 names the file (20 minutes)"

$(VENV)/.%: pyproject.toml $(CONSTRAINTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable ".[$*]"
	touch $@

cifar10: $(VENV)/.examples
	$(BIN)/python examples/cifar10.py --model tutorial

gallery: $(VENV)/.examples
	$(BIN)/python examples/gallery.py

docs: $(VENV)/.docs
	$(BIN)/python docs/site/build_site.py

test: $(VENV)/.test
	$(BIN)/python -m pytest

# In $(VENV)-privacy, which this target makes by calling make again.
privacy:
	$(MAKE) privately VENV=$(VENV)-privacy CONSTRAINTS=requirements/privacy.txt

privately: $(VENV)/.private
	$(BIN)/python -m pytest tests/test_privacy.py tests/test_examples.py -k "privacy or private"

lowest:
	$(MAKE) test VENV=.venv-lowest CONSTRAINTS=requirements/lowest.txt

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

dist: $(VENV)/.dist
	$(BIN)/python checks/dist.py

parity: $(VENV)/.bench
	$(BIN)/python benchmarks/parity.py --out benchmarks/results/parity.md

interop: $(VENV)/.bench
	$(BIN)/python benchmarks/interop.py --out benchmarks/results/interop.md

memory: $(VENV)/.test
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/import_time.py

bench: $(VENV)/.bench
	$(BIN)/python benchmarks/peers.py --seconds 0.3 --json benchmarks/results/peers_$(MACHINE).json --markdown benchmarks/results/peers_$(MACHINE).md
	PYTHONPATH=benchmarks $(BIN)/python -m peers_parts.pages

accuracy: $(VENV)/.bench
	$(BIN)/python benchmarks/cifar10_accuracy.py --recipe fast90 --json benchmarks/results/fast90.json

kernels: $(VENV)/.test
	$(BIN)/python checks/kernel_mutants.py --out benchmarks/results/kernel_mutants.md
	$(BIN)/python checks/native_mutants.py --out benchmarks/results/native_mutants.md

processors: $(VENV)/.test
	$(BIN)/python checks/processors.py --out benchmarks/results/processors.md

sanitize: $(VENV)/.test
	$(BIN)/python checks/sanitize.py

differential: $(VENV)/.bench
	$(BIN)/python checks/differential.py --out benchmarks/results/differential.md

mutants: $(VENV)/.mutants
	$(BIN)/python checks/mutants.py --out benchmarks/results/mutants.md

# In the machine's own Python: CuPy for its CUDA and nnlite's dependencies; the rest where it is there, see benchmarks/gpu.py.
gpu:
	PYTHONPATH=. $(PYTHON) benchmarks/gpu.py

kills: $(VENV)/.test
	$(BIN)/python checks/kills.py --out benchmarks/results/kills.md

hosts: $(VENV)/.test
	$(BIN)/python checks/hosts.py

fuzz: $(VENV)/.test
	$(BIN)/python checks/fuzz.py --out benchmarks/results/fuzz.md

soak: $(VENV)/.test
	$(BIN)/python checks/soak.py --out benchmarks/results/soak.md

stream: $(VENV)/.test
	$(BIN)/python benchmarks/stream.py --out benchmarks/results/stream.md

search: $(VENV)/.test
	$(BIN)/python examples/search.py --compare --out benchmarks/results/search.md

clean:
	rm -rf $(VENV) $(VENV)-privacy build dist out site .pytest_cache .hypothesis .mypy_cache .ruff_cache
