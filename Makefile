# Targets work from anywhere: make -C path/to/nlu_ppo TARGET. Everything is installed into .venv, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check --progress-bar on
STAMP := $(VENV)/.installed
NAME ?= demo
TABLE ?= demo
BENCH ?= local
OUTPUTS ?= outputs
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-faults lint table reproduce-table sweep ui sync tiny-model docs lock clean \
	bench bench-quick bench-peers gpu-check audit sbom

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 18

$(STAMP): constraints.txt requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "nlu_ppo needs Python >= 3.10, and $(PYTHON) is " + sys.version.split()[0] + ": set PYTHON=...")'
	@echo "Installing into $(VENV): 2 to 5 minutes (longer where torch brings CUDA along) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) --no-compile --require-hashes --no-deps -r requirements.lock
	@$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true # pip does it on one core; some files are for other Pythons
	@$(PIP) -c constraints.txt --no-build-isolation -e '.[dev]'
	@touch $(STAMP)

demo: $(STAMP) ## four methods on two toy tasks, then a table and pictures: about 4 minutes on 2 cores
	@echo "The demo: 8 runs, about 4 minutes on 2 cores."
	@$(BIN)/python train.py -m +sweeps=demo $(ARGS)
	@$(BIN)/python -m nlu_ppo.tables demo
	@echo "Compare these runs in MLflow:  make ui   (then open http://127.0.0.1:5000)"

test: $(STAMP) ## the tests: meant to take under 20 minutes on 2 cores
	@echo "The tests: under 20 minutes on 2 cores, unless they are busy."
	@$(BIN)/python -m pytest $(ARGS)

test-all: $(STAMP) ## and those that compile, start a Slurm or a server, or fill the memory: some minutes more
	@$(BIN)/python -m pytest -m "" $(ARGS)

test-faults: $(STAMP) ## the tests of docs/reliability.md at full length, whose table they rewrite: meant to take two hours
	@$(BIN)/python -m pytest -m promise --full --record=benchmarks/results/faults.json -rs $(ARGS); \
		code=$$?; $(BIN)/python tests/promises.py; exit $$code

lint: $(STAMP) ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

sweep: $(STAMP) ## run a study: make sweep NAME=demo
	@$(BIN)/python train.py -m +sweeps=$(NAME) $(ARGS)

table: $(STAMP) ## table and pictures from finished runs: make table TABLE=demo
	@$(BIN)/python -m nlu_ppo.tables $(TABLE) --outputs $(OUTPUTS)

reproduce-table: $(STAMP) ## say what a table lacks and costs, run that, build it: make reproduce-table TABLE=demo
	@$(BIN)/python -m nlu_ppo.tables.reproduce $(TABLE) outputs=$(OUTPUTS) $(ARGS)

ui: $(STAMP) ## the MLflow UI on http://127.0.0.1:5000
	@$(BIN)/mlflow ui --backend-store-uri sqlite:///$(CURDIR)/outputs/mlflow.db --host 127.0.0.1 --port 5000

sync: $(STAMP) ## bring what MLflow lacks from the run folders into it: make sync ARGS="--uri http://host:5000"
	@$(BIN)/python -m nlu_ppo.tracking $(ARGS)

bench-peers: $(STAMP) ## install the libraries that benchmarks compare with: a few minutes
	@$(BIN)/python -m benchmarks.peers.install

bench: $(STAMP) ## all benchmarks, five rounds: meant to take an hour and a half
	@$(BIN)/python -m benchmarks --name $(BENCH) $(ARGS)
	@$(BIN)/python -m benchmarks --growth --name $(BENCH)

bench-quick: $(STAMP) ## the main benchmarks, meant to take under 10 minutes; the last line is JSON
	@$(BIN)/python -m benchmarks --quick $(ARGS)

gpu-check: $(STAMP) ## is it right and fast on this GPU? Meant to take under 8 minutes, needs no network (docs/gpu.md)
	@$(BIN)/python -m benchmarks.gpu_check $(ARGS)

tiny-model: $(STAMP) ## train the embedded model again: about 20 minutes
	@OMP_NUM_THREADS=1 $(BIN)/python -m nlu_ppo.models.tiny.build

docs: $(STAMP) ## rewrite the generated pages of docs/
	@$(BIN)/python -m nlu_ppo.reference
	@$(BIN)/python -m benchmarks.report
	@$(BIN)/python tests/promises.py

# Not in requirements.lock: torch has several builds of one version (CUDA, CPU, ROCm), each with hashes of its own, and
# which one a machine takes is its owner's choice. What only its CUDA build needs goes with it.
UNHASHED := torch triton cuda-bindings cuda-pathfinder cuda-toolkit nvidia-cublas nvidia-cuda-cupti nvidia-cuda-nvrtc \
	nvidia-cuda-runtime nvidia-cudnn-cu13 nvidia-cufft nvidia-cufile nvidia-curand nvidia-cusolver nvidia-cusparse \
	nvidia-cusparselt-cu13 nvidia-nccl-cu13 nvidia-nvjitlink nvidia-nvshmem-cu13 nvidia-nvtx

# These tools need other versions of some packages than we do, and so have an environment of their own.
TOOLS := .tools
COMPILE = $(TOOLS)/bin/uv pip compile --quiet --universal --python-version 3.10 --no-header --no-annotate --no-emit-index-url

$(TOOLS)/bin/python:
	@$(PYTHON) -m venv $(TOOLS)
	@$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check uv pip-audit cyclonedx-bom

lock: $(TOOLS)/bin/python ## resolve constraints.txt and requirements.lock anew, for every supported Python
	@$(COMPILE) --extra dev --extra api --extra slurm --extra postgres pyproject.toml -o constraints.txt
	@$(COMPILE) --generate-hashes --extra dev -c constraints.txt $(UNHASHED:%=--no-emit-package %) pyproject.toml -o requirements.lock

audit: $(TOOLS)/bin/python ## look up every pinned version in a database of known holes; needs its network
	@$(TOOLS)/bin/pip-audit --strict --no-deps --disable-pip -r requirements.lock $(ARGS)

sbom: $(STAMP) $(TOOLS)/bin/python ## what is installed, as CycloneDX JSON: sbom.json
	@$(TOOLS)/bin/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml --of JSON -o sbom.json
	@echo "sbom.json lists what is installed in $(VENV)."

clean: ## remove the virtual environment and caches; outputs/ stays
	rm -rf $(VENV) $(TOOLS) sbom.json .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info
