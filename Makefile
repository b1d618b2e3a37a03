# Every target sets up its own virtual environment first; VENV=<folder> uses another one.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
VENV ?= .venv
PYTHON ?= python3
PY := $(VENV)/bin/python
STAMP := $(VENV)/.attnlab-ready
MODELS := $(basename $(notdir $(wildcard configs/model/*.yaml)))
EMBEDDED := pydocs digits
DEMO := outputs/demo

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint smoke benchmark

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(STAMP)  ## virtual environment with exact versions (constraints.txt)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: setup  ## train dot_product and neural_d2 on both embedded data sets, print one table (6 minutes on 2 cores)
	@for data in $(EMBEDDED); do for model in dot_product neural_d2; do \
	  echo "== python train.py data=$$data model=$$model (shortened)"; \
	  $(PY) train.py data=$$data model=$$model trainer.max_steps=200 trainer.eval_every=100 \
	    runtime.output_root=$(DEMO) | tail -n 1; \
	done; done
	@$(PY) scripts/summary.py runs=$(DEMO)

smoke: setup  ## every model on every embedded data set, a few steps each
	@for data in $(EMBEDDED); do for model in $(MODELS); do \
	  $(PY) train.py data=$$data model=$$model scale=smoke logger=none \
	    runtime.output_root=outputs/smoke | tail -n 1; \
	done; done

test: setup  ## all tests
	$(PY) -m pytest

lint: setup  ## style and common mistakes
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

benchmark: setup  ## Neural Attention beside the dot product: attention alone, then whole training steps (15 minutes on 2 cores)
	$(PY) -m pip install --quiet --constraint constraints.txt --editable '.[dev,report]'
	@mkdir -p outputs
	$(PY) scripts/benchmark.py --n 1024,2048 --backend cpp,triton
	$(PY) scripts/benchmark.py --n 785 --d 96 --full --backend cpp,triton
	$(PY) scripts/benchmark.py --n 1024 --case released_d2,d2_h2
	$(PY) scripts/benchmark.py --n 256,512,1024,2048,4096,8192 --case released_d2,full_h64 \
	  --backend algorithm_1,cpp,triton --plot outputs/benchmark.png
	$(PY) scripts/benchmark.py --model
