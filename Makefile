# Needs only make and Python 3.11 or newer; everything else goes into .venv, at the versions constraints.txt pins.

VENV := .venv
BIN := $(VENV)/bin
COMPLETE := $(VENV)/.complete
UNFINISHED := $(VENV)/.unfinished
PIP_INSTALL := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

# Tried in this order unless named: `make setup PYTHON=/opt/python3.12/bin/python3`.
PYTHONS := $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python)
NEW_ENOUGH := -c 'import sys; sys.exit(sys.version_info < (3, 11))'

.PHONY: help setup demo test check format
.DEFAULT_GOAL := help

help: ## print this list
	@sed -n 's/^\([a-z]*\):[^#]*## /  make \1\t/p' $(firstword $(MAKEFILE_LIST))

setup: $(COMPLETE) ## make .venv and install everything, where that is not done yet

demo: $(COMPLETE) ## train a small fleet on embedded data with four methods
	$(BIN)/leanfleet demo

test: check ## linters, types, import floors and the whole suite
	$(BIN)/python -m pytest --numprocesses logical --dist loadfile --no-loadscope-reorder

check: $(COMPLETE) ## linters, types and import floors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@for scripts in benchmarks benchmarks/search benchmarks/studies; do $(BIN)/mypy $$scripts/*.py || exit 1; done
	$(BIN)/lint-imports

format: $(COMPLETE) ## put the source files into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# pip 25.1 or newer knows dependency groups, hence pip itself first. Torch goes next and alone, so that nothing else
# can pull in another build of it. An environment that was left half-way is made anew: pip does not notice a package
# that was cut off while it was copied.
$(COMPLETE): pyproject.toml constraints.txt
	@if [ -e $(UNFINISHED) ] || ! { $(BIN)/python $(NEW_ENOUGH) && $(BIN)/python -m pip --version; } >/dev/null 2>&1; then \
	    for python in $(PYTHONS); do \
	        if "$$python" $(NEW_ENOUGH) 2>/dev/null; then found=$$python; break; fi; \
	    done; \
	    if [ -z "$$found" ]; then \
	        echo "No Python 3.11 or newer among: $(PYTHONS). Install one, or name it: make PYTHON=/path/to/python3" >&2; \
	        exit 1; \
	    fi; \
	    echo "Making $(VENV) with $$found"; \
	    "$$found" -m venv --clear $(VENV) || exit 1; \
	fi
	@touch $(UNFINISHED)
	@echo "Installing PyTorch, then leanfleet and its tools (a few minutes the first time)"
	@$(PIP_INSTALL) pip setuptools
	@$(PIP_INSTALL) torch
	@$(PIP_INSTALL) --no-build-isolation --group dev --editable '.[all]'
	@rm -f $(UNFINISHED)
	@touch $@
