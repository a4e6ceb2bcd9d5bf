# `make demo`, `make study` and `make test` set everything up on a fresh machine, in .venv; nothing else is needed.
PYTHON ?= python3
BIN := .venv/bin
# A process a core, with one thread each: more would get in each other's way.
WORKERS := $(shell $(PYTHON) -c 'import os; print(min(8, os.cpu_count()))')
LAST := $(shell expr $(WORKERS) - 1)
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --maxprocesses 8

.PHONY: demo study test types suite test-long clean

# A capture of the demo generator, labelled by what it shows, the trunk, and 250 detectors: (name, prompts).
define trained
	$(BIN)/python capture.py -m worker=0..$(LAST) workers=$(WORKERS) hydra/launcher=joblib \
		pipeline=demo prompts=lvd/demo/prompts.csv $(2) name=$(1)
	$(BIN)/python -m lvd.demo.label captures/$(1)
	$(BIN)/python capture.py name=$(1) labels=captures/$(1)/labels.csv
	$(BIN)/python train.py task=trunk experiment=demo name=$(1)
	$(BIN)/python train.py -m category=0..4 step=0..49 experiment=demo name=$(1)
endef

demo: .venv/installed
	$(call trained,demo,limit=620)
	$(BIN)/python evaluate.py name=demo eta=20 lam=0.6 decision=sequential alpha=0.05 guarantee=confidence
	$(BIN)/python -m lvd.demo.prompt_filter
	$(BIN)/python -m lvd.demo.guarded --videos 24

study: .venv/installed
	$(call trained,study,videos_per_prompt=5)
	$(BIN)/python evaluate.py name=study eta=20 lam=0.6 decision=sequential alpha=0.01
	$(BIN)/python -m lvd.demo.prompt_filter --capture captures/study --run runs/study

test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAKE) --jobs 2 types suite

types: .venv/installed
	$(BIN)/mypy
	$(BIN)/lint-imports

suite: .venv/installed
	$(PYTEST) --dist worksteal

test-long: .venv/installed
	$(PYTEST) -m long --dist loadfile

clean:
	rm -rf .venv captures runs

# pip compiles on one core, compileall on all; it fails over files that are for other versions of Python.
# A third of all code is left out, of which little or nothing is ever imported.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[dev]'
	-$(BIN)/python -m compileall -qq -j 0 -x '/tests/|/transformers/models/|/ray/' .venv/lib
	touch $@
