# Two commands from a fresh clone: `make compare` and `make test`. Each stands alone and is safe to repeat.
# Everything lands in the clone: the environment in .venv, uv (where it is missing) and its cache in .tools.

PYTHON ?= python3
BIN := .venv/bin
UV := $(shell command -v uv 2>/dev/null || echo .tools/bin/uv)
# A uv of our own keeps its cache beside it; a user's uv keeps the user's.
UV_RUN = $(if $(filter .tools/bin/uv,$(UV)),UV_CACHE_DIR=.tools/cache ,)UV_PYTHON_DOWNLOADS=never UV_LINK_MODE=$(if $(UV_LINK_MODE),$(UV_LINK_MODE),hardlink) $(UV)
OUT ?= runs/compare

.PHONY: help setup compare test quick lint types docs smoke constraints clean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 18

.tools/bin/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "excite needs Python 3.11 or newer; $(PYTHON) is older. Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "uv is missing: installing it into .tools"
	@$(PYTHON) -m pip install -qqq --disable-pip-version-check --root-user-action=ignore --target .tools uv

# The stamp is written last: an interrupted set-up starts again, a finished one costs nothing.
.venv/.ready: pyproject.toml constraints.txt | $(if $(filter .tools/bin/uv,$(UV)),.tools/bin/uv)
	@echo "Setting up .venv: torch and friends, several GB the first time."
	@$(UV_RUN) venv --quiet --allow-existing --python '$(PYTHON)' .venv
	@$(UV_RUN) pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	@touch $@

setup: .venv/.ready  ## the environment in .venv

compare: .venv/.ready  ## the main job: plain, SE and ECA, 3 seeds each, on the embedded data
	@$(BIN)/excite compare --out $(OUT)

# One process a core, at most eight; a file's tests stay together, with what they share.
PYTEST = $(BIN)/python -m pytest -q --numprocesses auto --maxprocesses 8 --dist loadfile

test: .venv/.ready  ## the whole test suite
	@$(PYTEST)

quick: .venv/.ready  ## the tests that train no network and drive no browser
	@$(PYTEST) -m 'not slow'

lint: .venv/.ready  ## format and lint
	@$(BIN)/ruff format --check . && $(BIN)/ruff check .

types: .venv/.ready  ## type check
	@$(BIN)/mypy

docs: .venv/.ready  ## the documentation, into site/
	@$(BIN)/zensical build --clean --strict

smoke: .venv/.ready  ## the main job on two gates, one epoch, one seed
	@$(BIN)/excite compare --gates none,eca --seeds 1 --epochs 1 --out runs/smoke

constraints: .venv/.ready  ## pin the newest versions anew
	@echo '# The versions the suite was last run with, for `uv pip install --constraint`. Made by `make constraints`.' > constraints.txt
	@$(UV_RUN) pip compile pyproject.toml --quiet --extra dev --upgrade --universal --python-version 3.11 \
		--no-header --no-annotate --no-emit-index-url --no-emit-find-links >> constraints.txt

clean:  ## remove what the commands made, the environment too
	rm -rf .venv .tools runs site .pytest_cache .mypy_cache .ruff_cache
