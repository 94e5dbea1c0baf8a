# `make demo` runs the main job, `make test` passes the tests; both install what they need into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install demo test test-fast test-cluster lint stub wheel clean

install: $(STAMP)

# Every file is checked against its hash, the tools that build this package too.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, found " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(STAMP)
	$(BIN)/scale-ray demo

# Two processes: one runs the tests that start Ray, the other those that do not.
test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadgroup

# Without tests that start Ray or a server, or that take longer than a few seconds.
test-fast: $(STAMP)
	$(BIN)/python -m pytest -n 2 -m "not ray and not slow"

# Several nodes on this machine, which are killed and added while jobs run.
test-cluster: $(STAMP)
	$(BIN)/python -m pytest -m cluster

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

# The types that editors see of the Python API; a test holds it current.
stub: $(STAMP)
	$(BIN)/python -m scale_ray.stages.api > scale_ray/__init__.pyi.new
	mv scale_ray/__init__.pyi.new scale_ray/__init__.pyi

wheel: $(STAMP)
	$(BIN)/python -m build --wheel

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .mypy_cache
