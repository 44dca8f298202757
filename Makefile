# Every target sets up what it needs, once. A fresh machine needs Python 3.11 or newer and a network for the first run.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= outputs/demo
WORKERS ?= 2
COVERAGE ?= 90

# One thread a process: the tests run in WORKERS processes, and more threads than cores make small models slower.
THREADS := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE

# Two processes with one thread each train faster on two cores than one process with two threads.
TWO := $(THREADS) $(BIN)/python -m torch.distributed.run --standalone --nproc-per-node 2 -m glamm_mini.cli.main

.DEFAULT_GOAL := help
.PHONY: help demo test lint lab samples contact-sheet backbones tiny clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "glamm-mini needs Python 3.11 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.base.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -e .
	@touch $@

$(VENV)/.dev.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -e '.[train,eval,dev]'
	@touch $@ $(VENV)/.base.stamp

demo: $(VENV)/.base.stamp ## ask the tiny model about the bundled pictures; the last line names the picture it drew
	@$(BIN)/glamm-mini demo --out $(OUT)

test: $(VENV)/.dev.stamp ## lint, then all tests with coverage
	$(BIN)/ruff check .
	$(THREADS) $(BIN)/python -m pytest -n $(WORKERS) --cov=glamm_mini --cov-report=term --cov-fail-under=$(COVERAGE)

lint: $(VENV)/.dev.stamp ## lint alone
	$(BIN)/ruff check .

lab: $(VENV)/.dev.stamp ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab notebooks

samples: $(VENV)/.base.stamp ## render the bundled pictures in data/samples again
	$(BIN)/python figures/make_samples.py

contact-sheet: $(VENV)/.base.stamp ## draw a sheet of storybook scenes
	$(BIN)/python figures/contact_sheet.py

backbones: $(VENV)/.dev.stamp ## pretrain the tiny backbones into data/checkpoints/backbones; goes on where it stopped
	$(BIN)/glamm-mini train backbones --size tiny --out runs/backbones-tiny --resume
	mkdir -p data/checkpoints/backbones
	cp -r runs/backbones-tiny/model/. data/checkpoints/backbones/

tiny: $(VENV)/.dev.stamp ## train the tiny GLaMM into data/checkpoints/tiny; goes on where it stopped
	$(TWO) train storybook --size tiny --out runs/storybook-tiny --resume --set batch_size=8 --set threads=1
	$(TWO) train storybook --size tiny --out runs/storybook-tiny-2 --resume --set batch_size=8 --set threads=1 \
		--set start=runs/storybook-tiny --set steps=520 --set lr=8e-4 --set muon_lr=0.006 --set seed=5 \
		--set validate_every=0
	mkdir -p data/checkpoints/tiny
	cp -r runs/storybook-tiny-2/model/. data/checkpoints/tiny/

clean: ## remove the environment, caches and outputs (trained checkpoints stay)
	rm -rf $(VENV) outputs dist build .pytest_cache .ruff_cache .coverage
