# Every target sets up what it needs, once. A fresh machine needs Python 3.11 or newer and a network for the first run.

PYTHON ?= python3
VENV ?= .venv
LOWEST := .venv-lowest
BIN := $(VENV)/bin
OUT ?= outputs/demo
WORKERS ?= 2
HERO ?= 2
SEED ?= 11
CLASS ?= outputs/classroom
COVERAGE ?= 90

# One thread a process: the tests run in WORKERS processes, and more threads than cores make small models slower.
THREADS := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE

# Memory is kept from step to step instead of giving the pages back: training is a fifth faster with glibc, else unread.
KEEP := MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=4294967296 MALLOC_TOP_PAD_=268435456
ONE := $(THREADS) $(KEEP) $(BIN)/glamm-mini train
PYTEST := -m pytest -n $(WORKERS) --dist worksteal

# Two processes with one thread each train faster on two cores than one process with two threads.
PAIR := $(THREADS) $(KEEP) $(BIN)/python -m torch.distributed.run --standalone --nproc-per-node 2
TWO := $(PAIR) -m glamm_mini.cli.main

FURTHER := $(TWO) train storybook_continue --size tiny
CAPTIONS := gcg:9,refseg:6,regcap:3,caption:1,grounding:2,vqa:8,chat:0.5

.DEFAULT_GOAL := help
.PHONY: help demo test coverage test-all test-lowest lint lab notebooks badges bands classroom samples figures contact-sheet backbones tiny five-minutes card table clean

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

test: $(VENV)/.dev.stamp ## lint, then all tests
	$(BIN)/ruff check .
	$(THREADS) $(KEEP) $(BIN)/python $(PYTEST) -m "not late"

coverage: $(VENV)/.dev.stamp ## run the quick tests again and measure which lines of the package they reach
	$(THREADS) $(KEEP) $(BIN)/python $(PYTEST) -m "not slow and not late and not browser" \
		--cov=glamm_mini --cov-report=term --cov-fail-under=$(COVERAGE)

test-all: $(VENV)/.dev.stamp ## run what `make test` leaves out: notebooks 10 to 15, from top to bottom
	$(THREADS) $(KEEP) $(BIN)/python $(PYTEST) -m late tests/course/test_notebooks.py

$(LOWEST)/.stamp: pyproject.toml
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip install uv
	$(LOWEST)/bin/uv pip install --python $(LOWEST) --resolution lowest-direct -e '.[train,eval,dev]'
	@touch $@

test-lowest: $(LOWEST)/.stamp ## run the quick tests with the lowest releases that pyproject.toml allows, in .venv-lowest
	$(THREADS) $(KEEP) $(LOWEST)/bin/python $(PYTEST) -m "not slow and not late and not browser"

lint: $(VENV)/.dev.stamp ## lint alone
	$(BIN)/ruff check .

lab: $(VENV)/.dev.stamp ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab notebooks

notebooks: $(VENV)/.dev.stamp ## run all notebooks and store them with their outputs
	$(THREADS) $(BIN)/python notebooks/execute.py

badges: $(VENV)/.dev.stamp ## write setup cells and badges of all notebooks by [project.urls] in pyproject.toml
	$(BIN)/python notebooks/badges.py

bands: $(VENV)/.dev.stamp ## repeat the notebooks' trainings with three seeds, store what they reach in notebooks/bands.json
	$(THREADS) $(BIN)/python notebooks/bands.py

classroom: $(VENV)/.dev.stamp ## copy the notebooks without outputs and solutions to CLASS=outputs/classroom
	$(BIN)/python notebooks/classroom.py $(CLASS)

samples: $(VENV)/.base.stamp ## render the bundled pictures in data/samples again
	$(BIN)/python figures/make_samples.py

figures: $(VENV)/.base.stamp ## make the pictures of README and notebooks in figures/; HERO=18 chooses the scene the model describes
	$(THREADS) $(BIN)/python figures/make_figures.py --hero-index $(HERO)

contact-sheet: $(VENV)/.base.stamp ## draw a sheet of storybook scenes
	$(BIN)/python figures/contact_sheet.py

backbones: $(VENV)/.dev.stamp ## pretrain the tiny backbones into data/checkpoints/backbones, two at a time; goes on where it stopped
	$(ONE) backbones --size tiny --out runs/language --set only=language --resume & \
	$(ONE) backbones --size tiny --out runs/encoder --set only=encoder --resume && \
	$(ONE) backbones --size tiny --out runs/segmenter --set only=segmenter --resume && wait $$!
	mkdir -p data/checkpoints/backbones
	cp -r runs/segmenter/model/. runs/encoder/model/. runs/language/model/. data/checkpoints/backbones/

tiny: $(VENV)/.dev.stamp ## train the tiny GLaMM from the backbones into data/checkpoints/tiny; goes on where it stopped
	$(TWO) train storybook --size tiny --out runs/storybook --resume --set batch_size=8 --set threads=1
	$(FURTHER) --out runs/continue1 --resume --set batch_size=8 --set threads=1 --set start=runs/storybook/model
	$(FURTHER) --out runs/continue2 --resume --set batch_size=8 --set threads=1 --set start=runs/continue1 \
		--set tasks=$(CAPTIONS) --set conversations=4 --set steps=1100 --set seed=6
	mkdir -p data/checkpoints/tiny
	cp -r runs/continue2/model/. data/checkpoints/tiny/
	cp runs/storybook/model/training.json data/checkpoints/tiny/training.json
	cp runs/continue1/model/training.json data/checkpoints/tiny/training_2.json
	cp runs/continue2/model/training.json data/checkpoints/tiny/training_3.json
	$(THREADS) $(BIN)/python figures/familiar.py

five-minutes: $(VENV)/.dev.stamp ## five minutes of training from the backbones, on grounded captions alone, into runs/five-minutes-SEED
	$(TWO) train storybook --size tiny --out runs/five-minutes-$(SEED) --resume --set batch_size=8 --set threads=1 \
		--set tasks=gcg --set conversations=1 --set steps=220 --set muon_lr=0.006 --set seed=$(SEED) --set scenes=100

card: $(VENV)/.dev.stamp ## measure the tiny model on all splits, write its card, pictures and the README's table
	$(PAIR) figures/model_card.py
	$(BIN)/python figures/results_table.py

table: $(VENV)/.base.stamp ## write the README's table of results again from the measured scores
	$(BIN)/python figures/results_table.py

clean: ## remove the environment, caches and outputs (trained checkpoints stay)
	rm -rf $(VENV) $(LOWEST) outputs dist build .pytest_cache .ruff_cache .coverage
