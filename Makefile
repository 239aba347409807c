# Each target works alone on a fresh clone: it makes .venv, installs what it needs, pinned, and runs.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check
LINTED := sk_unlearn tests examples benchmarks docs

# A copied or moved clone must run its own code, whatever its .venv was installed from.
export PYTHONPATH := $(CURDIR)

.NOTPARALLEL:
.PHONY: help demo test test-slow lint types docs bench clean

help:
	@echo "make demo       fit, delete 1% of the rows, read the certificate (examples/quickstart.py)"
	@echo "make test       the tests that take seconds, and every example in a docstring"
	@echo "make test-slow  statistical and long tests"
	@echo "make lint       ruff: style, docstrings, formatting"
	@echo "make types      mypy, strict on what a certificate rests on"
	@echo "make docs       the documentation, warnings as errors, into docs/_build/html"
	@echo "make bench      every benchmark at its quick size"
	@echo "make clean      remove .venv and what the targets wrote"

# A stamp is written last: an interrupted installation starts again.
$(VENV)/stamp-python:
	@$(PYTHON) -c 'import sys; sys.exit("sk_unlearn needs Python 3.11 or later, and $(PYTHON) is " + sys.version.split()[0] + ": make PYTHON=python3.12 ..." if sys.version_info < (3, 11) else 0)'
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/stamp-base: requirements/base.txt pyproject.toml $(VENV)/stamp-python
	$(PIP) -r requirements/base.txt
	$(PIP) --no-build-isolation --no-deps --editable .
	@touch $@

$(VENV)/stamp-lint: requirements/lint.txt $(VENV)/stamp-python
	$(PIP) -r $<
	@touch $@

$(VENV)/stamp-plots $(VENV)/stamp-test $(VENV)/stamp-docs: $(VENV)/stamp-%: requirements/%.txt requirements/plots.txt $(VENV)/stamp-base
	$(PIP) -r $<
	@touch $@

demo: $(VENV)/stamp-plots
	$(PY) examples/quickstart.py

test: $(VENV)/stamp-test
	$(PY) -m pytest -m "not slow" --durations=15

test-slow: $(VENV)/stamp-test
	$(PY) -m pytest -m slow --durations=15 tests

lint: $(VENV)/stamp-lint
	$(PY) -m ruff check $(LINTED)
	$(PY) -m ruff format --check $(LINTED)

types: $(VENV)/stamp-base $(VENV)/stamp-lint
	$(PY) -m mypy

docs: $(VENV)/stamp-docs
	$(PY) -m sphinx -W --keep-going --fresh-env -b html docs docs/_build/html
	@echo "The documentation is in docs/_build/html/index.html"

# What a script prints is a table of the documentation (docs/performance.md, docs/reproducing.md).
bench: $(VENV)/stamp-test
	@set -e; for script in benchmarks/[a-z]*.py; do \
		echo "== $$script --quick"; \
		$(PY) $$script --quick >benchmarks/results/table || { cat benchmarks/results/table; exit 1; }; \
		tee benchmarks/results/$$(basename $$script .py).txt <benchmarks/results/table; \
	done; rm -f benchmarks/results/table

clean:
	rm -rf $(VENV) build dist *.egg-info docs/_build docs/auto_examples docs/api \
		docs/sg_execution_times.rst htmlcov .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache
