# Every verb prepares its own environment in .venv; nothing else has to be installed first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# One process for all guests, which would slow each other down, and one for everything else.
PARALLEL ?= --numprocesses 2 --dist loadscope --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help demo doctor dev format check docs test test-fast image agent clean

help:  ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'Ballast needs Python 3.11 or later; set PYTHON=/path/to/one.' >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ echo 'Python lacks venv: on Debian, apt install python3-venv.' >&2; exit 1; }
	@echo 'Installing Ballast and its tools into $(VENV) ...'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

dev: $(STAMP)  ## Prepare .venv with Ballast and its tools

demo: $(STAMP)  ## Boot a guest and watch its memory go back to the host
	$(BIN)/ballast demo $(DEMO_OPTIONS)

doctor: $(STAMP)  ## Say what this machine has and lacks
	$(BIN)/ballast doctor

format: $(STAMP)  ## Format the code
	$(BIN)/ruff check --fix --quiet
	$(BIN)/ruff format

check: $(STAMP)  ## Format, lint, types and import rules
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(STAMP)  ## Write the references that come from the code
	$(BIN)/python -m ballast.qmp.reference docs/qmp.md
	$(BIN)/python -m ballast.daemon.recipes.reference docs/recipes.md

test: $(STAMP)  ## All tests, real QEMU and real guests included
	$(BIN)/ballast image build
	$(BIN)/python -m pytest $(PARALLEL) $(TEST_OPTIONS)

test-fast: $(STAMP)  ## The tests that need no QEMU
	$(BIN)/python -m pytest -m 'not qemu and not guest' $(TEST_OPTIONS)

image: $(STAMP)  ## Find or build QEMU and the guest
	$(BIN)/ballast image build

agent: $(STAMP)  ## Pack the guest agent into dist/ballast-agent.pyz
	$(BIN)/ballast image agent dist/ballast-agent.pyz

clean:  ## Remove what was built here; the cache of QEMU and guests stays
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
