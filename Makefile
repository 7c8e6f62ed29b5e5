# The front door. `make` alone prints this help.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= $(firstword $(shell command -v python3.11 python3))
BIN := .venv/bin
COOKBOOK := $(BIN)/python -m cookbook
ALL_RECIPES := $(patsubst recipes/%/main.py,%,$(wildcard recipes/*/main.py))
ARGS ?=
# Two `make` at once in one checkout: the second waits for the first one's environment (where there is flock).
ONE_AT_A_TIME := $(if $(shell command -v flock),flock .setup.lock) bash -c

help: ## this help
	@grep -hE '^[a-z%-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z%-]+):.*## (.*)/  make \1|\2/' | column -t -s '|'
	@echo; echo "  recipes: $(ALL_RECIPES)"
	@echo '  settings: make recipe-horovod ARGS="recipe.num_epochs=3 cluster.num_workers=4 scale=smoke"'

setup: $(BIN)/.stamp ## the driver's own environment, in .venv

# The stamp is written last: an interrupted setup is done again.
$(BIN)/.stamp: requirements.txt Makefile
	@echo "setup        the driver's environment (.venv)"
	@$(ONE_AT_A_TIME) 'test $@ -nt requirements.txt && test $@ -nt Makefile || { \
		rm -rf .venv && $(PYTHON) -m venv .venv && \
		$(BIN)/pip install -q "$$(grep "^uv==" requirements.txt)" && \
		UV_COMPILE_BYTECODE=1 $(BIN)/uv pip install -q --python $(BIN)/python -r requirements.txt && \
		touch $@; }'

recipe-%: $(BIN)/.stamp ## run one recipe: data, environment, workers, evidence, report
	@$(COOKBOOK) recipe=$* $(ARGS)

doctor: ## which tools the recipes need, found or missing
	@$(PYTHON) -m cookbook.doctor

report: $(BIN)/.stamp ## one page over all past runs
	@$(BIN)/python -m cookbook.report

compare: $(BIN)/.stamp ## the same task in several recipes: RECIPES="horovod pytorch" ARGS="recipe.num_epochs=4"
	@$(BIN)/python -m cookbook.compare "$(RECIPES)" $(ARGS)

eject: $(BIN)/.stamp ## copy a recipe out so that it runs by itself: RECIPE=horovod TO=../mine
	@$(BIN)/python -m cookbook.eject "$(RECIPE)" "$(TO)" $(ARGS)

bench: $(BIN)/.stamp ## measure a recipe against the bare framework: RECIPE=horovod
	@PYTHONPATH=. $(BIN)/python recipes/$(RECIPE)/benchmark.py

bench-hosts: $(BIN)/.stamp ## all-reduce over limited links against a model (as root, Linux)
	@PYTHONPATH=. $(BIN)/python infra/local/benchmark.py

infra-%: $(BIN)/.stamp ## machines: infra-plan, -up, -status, -down: TARGET=local|aws|gcp|eks|gke|kubernetes ARGS="infra.variables.num_hosts=3"
	@$(BIN)/python -m cookbook.infra $* "$(TARGET)" $(ARGS)

test: $(BIN)/.stamp ## the whole suite
	@$(BIN)/python -m cookbook.environments make
	@$(BIN)/python -m pytest $(ARGS)

lint: $(BIN)/.stamp ## ruff
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

lock: $(BIN)/.stamp ## renew all locks (or: RECIPE=horovod)
	@$(BIN)/python -m cookbook.environments lock $(RECIPE)

clean: ## remove environments, runs and caches of this checkout
	@rm -rf .venv .venvs outputs .setup.lock .pytest_cache .ruff_cache runrecord/build runrecord/*.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: help setup doctor report compare eject bench bench-hosts test lint lock clean
