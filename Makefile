# The front door. `make` alone prints this help.
SHELL := /bin/bash
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules
ifeq ($(wildcard cookbook/bootstrap.py),)
$(error this Makefile works in its own folder: make -C $(dir $(firstword $(MAKEFILE_LIST))) $(MAKECMDGOALS))
endif
# The first one that starts: a shim of pyenv stands for versions that may not be chosen here.
PYTHON ?= $(shell type -ap python3.11 python3 | while read -r it; do "$$it" -c "" 2>/dev/null && echo "$$it" && break; done)
BIN := .venv/bin
COOKBOOK := $(BIN)/python -m cookbook
ALL_RECIPES := $(patsubst recipes/%/main.py,%,$(wildcard recipes/*/main.py))
ARGS ?=
# Another tool's exported ARGS would be taken for settings: say where they come from.
ifeq ($(origin ARGS),environment)
$(shell echo "note: ARGS comes from the environment, not from this command line" >&2)
endif
# make recipe-x scale=smoke: to make that is a variable of its own, and no recipe would ever hear of it.
GROUPS := $(notdir $(patsubst %/,%,$(wildcard conf/*/)))
SETTINGS := $(GROUPS) $(GROUPS:%=%.%) seed resume output_root cache_dir args ARG
BESIDE := $(strip $(foreach name,$(filter $(SETTINGS),$(.VARIABLES)),$(if $(findstring command,$(origin $(name))),$(name))))
ifneq ($(BESIDE),)
$(error $(BESIDE): settings stand in ARGS: make ... ARGS="$(foreach name,$(BESIDE),$(if $(filter args ARG,$(name)),,$(name)=)$($(name)))")
endif
# What ARGS holds reaches the programs as it was typed: neither make nor the shell looks for $, braces or brackets in it.
export COOKBOOK_ARGS := $(value ARGS)
# Another Python's packages and switches have no place in the driver. Without bytecode on disk each process would
# compile all its modules anew.
unexport PYTHONDONTWRITEBYTECODE PYTHONHOME PYTHONPATH PYTHONSAFEPATH PYTHONSTARTUP PYTHONOPTIMIZE PYTHONWARNINGS PYTHONHASHSEED PYTHONMALLOC PYTHONINSPECT PYTHONIOENCODING
# Files and names are UTF-8, whatever the shell's locale says (en_US alone is ISO-8859-1).
export PYTHONUTF8 := 1
SETUP := .venv/.complete

help: ## this help
	@grep -hE '^[a-z%-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z%-]+):.*## (.*)/  make \1\t\2/' | column -t -s $$'\t'
	@echo; echo "  recipes: $(ALL_RECIPES)"
	@echo '  settings: make recipe-horovod ARGS="recipe.num_epochs=3 cluster.num_workers=4 scale=smoke"'

setup: $(SETUP) ## the driver's own environment, in .venv

# The environment lies in the user's cache, .venv is a link to it: the next checkout on this machine has it at once.
$(SETUP): requirements.txt cookbook/bootstrap.py
	@$(HAS_PYTHON)
	@$(PYTHON) -m cookbook.bootstrap

recipe-%: tools-for-% $(SETUP) ## run one recipe: environment, data, workers, evidence, report
	@$(COOKBOOK) recipe=$* @ARGS

# Before anything is installed, with the system's own Python.
HAS_PYTHON = $(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 8))" >/dev/null 2>&1 || \
	{ echo "error: there is no Python from 3.8 on ($(or $(PYTHON),none at all)); README.md has the line that installs all that is needed" >&2; exit 1; }

tools-for-%:
	@$(HAS_PYTHON)
	@$(PYTHON) -m cookbook.prepare.install before $* @ARGS

doctor: ## what the recipes need from the machine, found or missing (or: RECIPE=horovod)
	@$(HAS_PYTHON)
	@$(PYTHON) -m cookbook.prepare.doctor $(RECIPE)

tools: ## install what is missing; asks first (YES=1: does not; RECIPE=horovod; USE="tests images")
	@$(HAS_PYTHON)
	@YES="$(YES)" $(PYTHON) -m cookbook.prepare.install install $(RECIPE) $(USE)

report: $(SETUP) ## one page over all past runs
	@$(BIN)/python -m cookbook.report.pages @ARGS

send: $(SETUP) ## send a run to its tracker, later: RUN=outputs/horovod/latest ARGS="tracking=mlflow"
	@$(BIN)/python -m cookbook.report.tracking "$(RUN)" @ARGS

watch: $(SETUP) ## the page of a run while it goes, on loopback: RUN=outputs/pytorch/latest PORT=8800 (or the newest run)
	@$(BIN)/python -m cookbook.tools.watch "$(RUN)" "$(PORT)"

diagnose: $(SETUP) ## who holds a run up that goes on at this moment, and in which line: RUN=outputs/pytorch/latest
	@$(BIN)/python -m cookbook.tools.diagnose "$(RUN)"

compare: $(SETUP) ## the same task in several recipes: RECIPES="horovod pytorch" ARGS="recipe.num_epochs=4"
	@$(BIN)/python -m cookbook.tools.compare "$(RECIPES)" @ARGS

eject: $(SETUP) ## copy a recipe out so that it runs by itself: RECIPE=horovod TO=../mine
	@$(BIN)/python -m cookbook.tools.eject "$(RECIPE)" "$(TO)" @ARGS

diff: $(SETUP) ## what makes a recipe's program a distributed one, against its twin in one process: RECIPE=horovod
	@$(BIN)/python -m cookbook.tools.diff "$(RECIPE)"

chaos: $(SETUP) ## hurt a run and see it recover: RECIPE=pytorch FAULTS="kill@step=7,rank=1 driver_kill" (FAULTS=help lists them)
	@$(BIN)/python -m cookbook.tools.chaos "$(RECIPE)" "--faults=$(FAULTS)" "--seed=$(SEED)" @ARGS

chaos-table: $(SETUP) ## the table of faults and recipes, from all results of make chaos (TO=docs/chaos.md)
	@$(BIN)/python -m cookbook.tools.chaos --table --to "$(TO)"

guide: $(SETUP) ## which tool for my job: the same tasks in all systems, measured, one page: ARGS=smoke (10 minutes), or a night
	@$(BIN)/python -m guide @ARGS

choose: $(SETUP) ## five questions, and the recipe to take: ARGS="task=tables rows=3e7 machines=one framework=pandas team=alone"
	@$(BIN)/python -m guide.choose @ARGS

BENCHMARKS := $(filter-out __init__ measure,$(patsubst benchmarks/%.py,%,$(wildcard benchmarks/*.py)))

bench: $(SETUP) ## measure a recipe against the bare framework: RECIPE=horovod (TO=recipes/horovod/README.md)
	@test -f "benchmarks/$(RECIPE).py" || { echo "error: RECIPE=$(RECIPE) has no benchmark; there are: $(BENCHMARKS)" >&2; exit 1; }
	@TO="$(TO)" $(BIN)/python -m benchmarks.$(RECIPE)

bench-hosts: $(SETUP) ## all-reduce over limited links against a model (as root, Linux)
	@PYTHONPATH=. $(BIN)/python infra/local/benchmark.py

services-%: $(SETUP) ## a Spark, Dask or Ray cluster that stays up on hosts: services-up, -down, -status: RECIPE=dask INVENTORY=hosts.yaml
	@$(BIN)/python -m cookbook.tools.services $* "$(INVENTORY)" "$(RECIPE)" @ARGS

infra-%: $(SETUP) ## machines: infra-plan, -up, -status, -down: TARGET=local|aws|gcp|eks|gke|kubernetes ARGS="infra.variables.num_hosts=3"
	@$(BIN)/python -m cookbook.tools.infra $* "$(TARGET)" @ARGS

# Two tests at a time: most of a run is waiting. Those that make networks stay on one of the two (tests/areas.py).
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder

test: $(SETUP) ## every recipe and mode once, small, and all unit tests (15 to 30 minutes; ARGS="-k spark")
	@$(BIN)/python -m tests.prepare $(ARGS)
	@$(PYTEST) $(ARGS)

test-all: $(SETUP) ## everything: each fault, place, ejected copy, parity pair (or one area: AREA=spark)
	@$(BIN)/python -m tests.prepare --all $(if $(AREA),--area $(AREA)) $(ARGS)
	@$(PYTEST) --all $(if $(AREA),--area $(AREA)) $(ARGS)

image-sizes: $(SETUP) ## build the images, one after the other, and say how large they are (as root; RECIPE=dask)
	@$(BIN)/python -m tests.image_engine $(RECIPE)

areas: $(SETUP) ## the areas of test-all, one a line
	@$(BIN)/python -m tests.areas

lint: $(SETUP) ## ruff and mypy; actionlint and zizmor for the workflows
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@$(BIN)/python -m mypy
	@$(BIN)/python -m tests.lint_workflows

docs: $(SETUP) ## the pages in docs/ as a site, with all settings; a link that leads nowhere is an error
	@$(BIN)/python -m docs.build

nightly-record: $(SETUP) ## run a recipe and append its line to a history: RECIPE=horovod HISTORY=history.jsonl
	@$(BIN)/python -m cookbook.tools.health record "$(RECIPE)" "$(HISTORY)" @ARGS

health: $(SETUP) ## one page over a history of nightly runs: HISTORY=history.jsonl TO=outputs/health
	@$(BIN)/python -m cookbook.tools.health page "$(HISTORY)" "$(or $(TO),outputs/health)"

canary: $(SETUP) ## try newer versions than the lock's in a copy, name the upgrade that breaks: RECIPE=horovod HISTORY=history.jsonl
	@$(BIN)/python -m cookbook.tools.canary "$(RECIPE)" $(if $(HISTORY),--history "$(HISTORY)") $(if $(MINUTES),--minutes "$(MINUTES)")

lock: $(SETUP) ## renew all locks (or: RECIPE=horovod)
	@$(BIN)/python -m cookbook.prepare.locks $(RECIPE)

clean: ## remove environments, runs and caches of this checkout
	@rm -rf .venv .venvs outputs .pytest_cache .mypy_cache .ruff_cache runrecord/build runrecord/*.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: help setup doctor tools report send watch diagnose compare eject diff guide choose chaos chaos-table bench bench-hosts test test-all image-sizes areas lint docs nightly-record health canary lock clean
