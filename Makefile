# The commands of this project; `make help` lists them. .venv is made by setup.sh.
# PYTHON=/path/to/python3.11 chooses the interpreter that .venv is made with.
.DEFAULT_GOAL := help
.PHONY: help setup demo bench check lint format types test test-slow test-cluster rehearsal clean setup-dev

PYTEST_ARGS ?=
# Most of a test's time is one busy core. A file's tests stay together: they share fixtures.
# AT_ONCE= runs one after the other, as -s and --pdb need it.
AT_ONCE ?= -n 2 --dist loadfile
REHEARSAL_ARGS ?=
BENCH_ARGS ?=

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## make .venv (Python 3.10 or 3.11); at once when nothing changed
	@bash setup.sh

demo: setup ## train a LoRA on the mini SDXL with two workers, pictures into demo/
	@.venv/bin/mindbooth demo

bench: setup ## every figure that is measured, in one table, into build/bench/
	@.venv/bin/python benchmarks/bench.py $(BENCH_ARGS)

lint: setup-dev types ## format, lint and types
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .

check: lint ## the same and the unit tests
	.venv/bin/python -m pytest -q tests/unit $(PYTEST_ARGS)

format: setup-dev ## rewrite the sources in the project's format
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

test: setup-dev ## unit tests, and integration tests with real msrun workers
	.venv/bin/python -m pytest tests --ignore=tests/cluster -m "not slow" $(AT_ONCE) $(PYTEST_ARGS)

test-slow: setup-dev ## the tests that take minutes each, for parts that change seldom
	.venv/bin/python -m pytest tests -m slow $(PYTEST_ARGS)

test-cluster: setup-dev ## tests on two hosts, Slurm and sshd; as root, installs what they need
	.venv/bin/python -m pytest tests/cluster -m "not slow" $(AT_ONCE) $(PYTEST_ARGS)

rehearsal: setup ## the main job on a model of SDXL's full size: 8 GB of disk, 24 GB of memory
	@.venv/bin/python examples/full-size/rehearsal.py $(REHEARSAL_ARGS)

clean: ## remove what was built, but not .venv
	rm -rf build dist demo rehearsal mindbooth.egg-info .mypy_cache .pytest_cache .hypothesis .ruff_cache rank_[0-9]* kernel_meta
	find . -name .venv -prune -o -name __pycache__ -type d -exec rm -rf {} +

# One link shows the four folders to mypy as mindbooth.*, which an editable install hides from it.
types: setup-dev
	@mkdir -p build/types && ln -sfn ../.. build/types/mindbooth
	.venv/bin/mypy

setup-dev:
	@bash setup.sh dev,compare
