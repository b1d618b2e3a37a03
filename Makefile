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
PAGES := README.md CONTRIBUTING.md CHANGELOG.md CITATION.cff LICENSE docs results

# Where experiments find data (hub ids, or local folders of the same form), and what they are told besides,
# as in  make reproduce-table1 ARGS="protocol=released yes=true"
WIKITEXT ?= Salesforce/wikitext
CIFAR10 ?= uoft-cs/cifar10
CIFAR100 ?= uoft-cs/cifar100
ARGS ?=
table1 := table1 data.path=$(WIKITEXT)
table3 := table3 data.path=$(CIFAR10)
table4 := table4 data.path=$(CIFAR100)
figure1 := figure1 data.path=$(WIKITEXT)
MINI := $(table1) data=wikitext2 $(table3) $(table4) $(figure1) data=wikitext2
ABLATIONS := $(basename $(notdir $(filter-out %seeds.yaml,$(wildcard configs/experiment/ablate_*.yaml))))
REPRODUCE := $(addprefix reproduce-,table1 table3 table4 figure1)

.DEFAULT_GOAL := help
.PHONY: help setup demo test chaos lint smoke gpu benchmark $(REPRODUCE) reproduce-paper reproduce-mini ablations report docs

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'

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

chaos: setup  ## runs killed 60 times, 20,000 steps, 2,000 command lines: the long form of what test does (50 minutes on 2 cores)
	ATTNLAB_KILLS=12 $(PY) -m pytest -n 0 -s -o faulthandler_timeout=0 tests/test_chaos.py
	ATTNLAB_STEPS=20000 $(PY) -m pytest -n 0 -s -o faulthandler_timeout=0 tests/test_endurance.py
	ATTNLAB_FUZZ=2000 $(PY) -m pytest -n 0 -s -o faulthandler_timeout=0 tests/test_fuzz.py

lint: setup  ## style and common mistakes
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

$(REPRODUCE): reproduce-%: setup
	$(PY) scripts/reproduce.py $(ARGS) $($*)

reproduce-paper: setup  ## tables 1, 3, 4 and figure 1 at the published size (one: reproduce-table1, ...): estimates time and memory, then runs and reports; above one hour it stops unless ARGS=yes=true
	$(PY) scripts/reproduce.py $(ARGS) $(table1) $(table3) $(table4) $(figure1)

reproduce-mini: setup  ## the same in miniature (hours on 2 cores; WIKITEXT=, CIFAR10=, CIFAR100= name local data)
	$(PY) scripts/reproduce.py scale=mini $(ARGS) $(MINI) yes=true

ablations: setup  ## what the paper leaves open: d', hidden widths, activation, scale, layers, heads, positions (ARGS="data=pydocs")
	$(PY) scripts/reproduce.py $(ARGS) $(ABLATIONS)

report: setup  ## outputs/report: tables with verdicts, curves, figures of all runs in outputs
	$(PY) scripts/report.py outputs

docs: setup  ## the documentation as a site: outputs/site, built strictly
	@test -x $(VENV)/bin/mkdocs || $(PY) -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	@rm -rf outputs/pages && mkdir -p outputs/pages
	@ln -s $(PAGES:%=$(CURDIR)/%) outputs/pages/
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet

gpu: setup  ## what an NVIDIA GPU shows: results/gpu/<device>, in nine minutes (ARGS=size=smoke: on the CPU, a little of everything)
	$(PY) scripts/gpu.py $(ARGS)

benchmark: setup  ## Neural Attention beside the dot product: attention alone, then whole training steps (15 minutes on 2 cores)
	@mkdir -p outputs
	$(PY) scripts/benchmark.py n=1024,2048 backend=cpp,triton
	$(PY) scripts/benchmark.py n=785 d=96 full=yes backend=cpp,triton
	$(PY) scripts/benchmark.py n=1024 case=released_d2,d2_h2
	$(PY) scripts/benchmark.py n=256,512,1024,2048,4096,8192 case=released_d2,full_h64 \
	  backend=algorithm_1,cpp,triton plot=outputs/benchmark.png
	$(PY) scripts/benchmark.py model=yes
