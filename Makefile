# make demo | test | lint | clean: each sets up what it needs on a fresh clone, and a second call is quick.

PYTHONS ?= python3 python3.13 python3.12 python3.11 python3.14 python
MAX_WORKERS ?= 8
VENV := .venv
PYTHON := $(VENV)/bin/python
PIP_INSTALL := $(PYTHON) -m pip install --quiet --quiet --disable-pip-version-check

.PHONY: demo test lint clean
.DELETE_ON_ERROR:

# An environment whose Python is gone is set up anew.
$(shell test -x $(PYTHON) || rm -f $(VENV)/installed $(VENV)/installed-dev)

demo: $(VENV)/installed
	$(PYTHON) train.py flow-matching --data digits --class-conditional --out runs/demo
	$(PYTHON) sample.py runs/demo --guidance 2

test: $(VENV)/installed-dev
	$(PYTHON) -m pytest -n auto --maxprocesses $(MAX_WORKERS) --dist loadfile

lint: $(VENV)/installed-dev
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .jax_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/installed: pyproject.toml | $(PYTHON)
	@echo "installing genjax and its dependencies (about a minute)"
	@$(PIP_INSTALL) --editable .
	@touch $@

$(VENV)/installed-dev: pyproject.toml | $(PYTHON)
	@echo "installing genjax, its dependencies and the development tools (about a minute)"
	@$(PIP_INSTALL) --editable '.[dev]'
	@touch $(VENV)/installed $@

# Debian ships a Python whose venv module cannot work for want of ensurepip: both are asked for.
$(PYTHON):
	@for python in $(PYTHONS); do \
	    "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	    found=$$python; \
	    if "$$python" -c 'import ensurepip, venv' 2>/dev/null; then tool=venv; \
	    elif "$$python" -c 'import virtualenv' 2>/dev/null; then tool='virtualenv --quiet'; \
	    else continue; fi; \
	    echo "creating $(VENV) ($$("$$python" --version))"; \
	    "$$python" -m $$tool --clear $(VENV) || { rm -rf $(VENV); exit 1; }; \
	    exit 0; \
	done; \
	if [ -n "$$found" ]; then \
	    echo "error: $$found lacks the venv module; install it (on Debian and Ubuntu: apt install python3-venv) and call make again" >&2; \
	else \
	    echo "error: no Python 3.11 or newer found as any of '$(PYTHONS)'; install one, or name it: make PYTHONS=/path/to/python" >&2; \
	fi; \
	exit 1
