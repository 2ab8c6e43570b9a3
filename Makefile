# make install | train | test | test-lowest | lint | docs | peers; see CONTRIBUTING.md. PYTHON chooses the interpreter (3.10 or newer).
PYTHON ?= python3
# As in `make test PYTHON=python3.13 VENV=.venv-3.13`: one folder for each version.
VENV ?= .venv
BIN := $(VENV)/bin
# The versions to install.
CONSTRAINTS ?= constraints.txt
# The oldest Python; of what constraints-lowest.txt names, some has no wheel for Python 3.13.
LOWEST_PYTHON ?= python3.10
# Overrides for `make train`, such as ARGS="context_length=256 trainer.max_steps=50".
ARGS ?=

.PHONY: install train test test-lowest lint docs peers clean

install: $(VENV)/installed
	@echo "Installed in $(VENV). Next:"
	@echo "  make train                              train the sample GPT on the standard library, in minutes on a CPU"
	@echo "  $(BIN)/lightning-lance --help             the other commands"
	@echo "  make test                               the tests"

$(VENV)/installed: pyproject.toml $(CONSTRAINTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@# Without the warnings that setuptools has for every editable install.
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable '.[dev,docs]'
	touch $@

train: $(VENV)/installed
	$(BIN)/lightning-lance train $(ARGS)

test: $(VENV)/installed
	$(BIN)/python -m compileall -q lightning_lance conf examples tests/support
	@# For the tests of pages, which are skipped without one. Needs npm, and does nothing where it is missing.
	@$(BIN)/python -m tests.support.chromium
	@# Kept for the next time, whatever the environment says: the tests are rewritten by pytest, which takes each process seconds.
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses 3 --dist worksteal

# The same tests with the lowest versions that pyproject.toml allows.
test-lowest:
	$(MAKE) test PYTHON=$(LOWEST_PYTHON) VENV=.venv-lowest CONSTRAINTS=constraints-lowest.txt

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# The documentation, in site/. A link that leads nowhere, or a name that is not there, is an error. Needs no network.
docs: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# An environment of their own for what benchmarks/ compare this package with. One of them needs PYTHON=python3.13.
peers: .venv-peers/installed

.venv-peers/installed: benchmarks/peers/requirements.txt
	test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --constraint $< torch
	.venv-peers/bin/python -m pip install --quiet --no-deps --requirement $<
	.venv-peers/bin/python -m pip install --quiet --no-deps --editable .
	touch $@

clean:
	rm -rf build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
