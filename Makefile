# make demo       train a tiny model and adapter, merge and check them; about a minute and a half
# make check      ruff, mypy and the fast tests
# make test       ruff, mypy and all tests
# make lint       ruff and mypy
# make llama_cpp  compile llama.cpp once, for tests and demo; make test does it too
# make browser    find a browser for tests of pages, or install Debian's; make test does it too
# make fuzz       read 20,000 changed files of every kind and compare with torch, safetensors and gguf
#                 (INPUTS=...); guided by coverage if atheris can be installed, otherwise at random, as
#                 with FUZZ="--seed 1"
# make kill-test  1,000 merges, killed at random points and resumed, and 1,000 commands with Ctrl-C
#                 between two random lines (RUNS=..., SEED=...)
# make kill-machines  ten merges on a Ray cluster of two machines, of which one is killed (MACHINES=...)
# make package    build wheel and source distribution, check them, and install them into an empty
#                 environment with and without each extra (EXTRAS="- gguf": without, and with one);
#                 minutes for each
# make bench      time and memory of a merge of a 1.1B-shaped model, compared with copies and other tools
# make bench-all  everything in docs/performance.md; needs 40 GB of disk and an hour
# make clean      remove the environment and all that the targets above made
#
# Each target installs what it needs into .venv, from pyproject.toml, in the versions of constraints.txt.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Installing takes half the time without bytecode, which Python compiles on first use.
INSTALL := $(PIP) install -qq --no-compile --constraint constraints.txt
WORKERS ?= 2

# transformers 4.46, with which some tests compare, beside the transformers of the environment.
ORACLE := .oracles/transformers-4.46
export CHINESE_LLAMA_MERGE_TRANSFORMERS_446 := $(CURDIR)/$(ORACLE)
# llama.cpp's converters, with which some tests compare; llama.cpp itself is installed into .venv.
LLAMA_CPP := .oracles/llama.cpp
export CHINESE_LLAMA_MERGE_LLAMA_CPP := $(CURDIR)/$(LLAMA_CPP)
# Tests run in several processes; torch's thread pools would compete for the processors.
export OMP_NUM_THREADS := 1
export PYTHONUTF8 := 1
# Without stored bytecode, importing torch takes 2 s and 50 MiB more in every process.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo check test lint llama_cpp browser fuzz kill-test kill-machines package bench bench-all
.PHONY: clean

demo: $(VENV)/.demo
	$(BIN)/python demo/run.py

check: $(VENV)/.test $(ORACLE)/.done lint
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow"

test: $(VENV)/.test $(ORACLE)/.done lint
	@$(MAKE) --no-print-directory llama_cpp || echo "The tests with llama.cpp will be skipped."
	@$(MAKE) --no-print-directory browser || echo "The tests in a browser will be skipped."
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

llama_cpp: $(LLAMA_CPP)/.done

browser: $(VENV)/.test
	@$(BIN)/python tests/oracles/install_browser.py

INPUTS ?= 20000
FUZZ ?=

fuzz: $(VENV)/.fuzz
	$(BIN)/python -m tests.fuzz.run --inputs $(INPUTS) $(FUZZ)

RUNS ?= 1000
SEED ?= 2026

kill-test: $(VENV)/.test
	$(BIN)/python -m tests.interruption.kill_many --runs $(RUNS) --seed $(SEED)
	$(BIN)/python -m tests.interruption.between_lines --runs $(RUNS) --seed $(SEED)

MACHINES ?= 10

kill-machines: $(VENV)/.test
	$(BIN)/python -m tests.interruption.kill_machines --runs $(MACHINES)

EXTRAS ?=

package: $(VENV)/.test
	$(BIN)/python -m tests.packaging.run $(EXTRAS)

BENCH ?= --shape 1b --output_type huggingface --runs 3 --peers peft mergekit --verify
EXPERIMENTS ?= all
WORK_DIR ?= benchmark-output

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks.run --work_dir $(WORK_DIR) $(BENCH)

bench-all: $(VENV)/.bench
	$(BIN)/python -m benchmarks.suite --work_dir $(WORK_DIR) $(EXPERIMENTS)
	$(BIN)/python -m benchmarks.report --write docs/performance.md

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("Python 3.10 or later is needed")'
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --upgrade pip
	touch $@

$(VENV)/.demo: $(VENV)/.made pyproject.toml constraints.txt
	$(INSTALL) --editable '.[demo]'
	touch $@

$(VENV)/.test: $(VENV)/.made pyproject.toml constraints.txt
	$(INSTALL) --editable '.[test]'
	touch $@

$(VENV)/.fuzz: $(VENV)/.test
	$(INSTALL) --editable '.[fuzz]'
	touch $@

$(VENV)/.bench: $(VENV)/.made pyproject.toml constraints.txt
	$(INSTALL) --editable '.[bench]'
	touch $@

$(ORACLE)/.done: $(VENV)/.made tests/oracles/requirements-transformers-4.46.txt
	$(PIP) install -qq --no-compile --no-deps --upgrade --target $(ORACLE) \
	    -r tests/oracles/requirements-transformers-4.46.txt
	touch $@

$(LLAMA_CPP)/.done: $(VENV)/.made constraints.txt tests/oracles/install_llama_cpp.py
	@$(BIN)/python tests/oracles/install_llama_cpp.py $(LLAMA_CPP)
	@touch $@

clean:
	rm -rf $(VENV) .oracles demo-output benchmark-output build *.egg-info
