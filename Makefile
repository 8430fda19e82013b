# Every verb prepares its own environment in .venv; nothing else has to be installed first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# One process for all guests, which would slow each other down, and one for everything else.
PARALLEL ?= --numprocesses 2 --dist loadscope --no-loadscope-reorder

# podman, a runtime that works where its own does not, its network, and what makes a base image.
ENGINE_PACKAGES := podman runc buildah netavark aardvark-dns mmdebstrap

.DEFAULT_GOAL := help
.PHONY: help demo doctor dev format check docs test test-fast image agent release clean \
	engine images demo-containers test-containers

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
	$(BIN)/python -m pytest $(PARALLEL) -m 'not container' $(TEST_OPTIONS)

test-fast: $(STAMP)  ## The tests that need no QEMU
	$(BIN)/python -m pytest -m 'not qemu and not guest and not container' $(TEST_OPTIONS)

image: $(STAMP)  ## Find or build QEMU and the guest
	$(BIN)/ballast image build

engine:  ## Install podman and what it needs here (Debian, as root)
	apt-get install --yes --no-install-recommends $(ENGINE_PACKAGES)

images: $(STAMP)  ## Build the container images, with docker or podman
	$(BIN)/ballast image containers $(IMAGES_OPTIONS)

demo-containers: images  ## The demo through containers: QEMU in one, the worker in another
	$(BIN)/ballast demo --containers $(DEMO_OPTIONS)

test-containers: $(STAMP)  ## The tests in containers; builds the images if need be
	$(BIN)/python -m pytest tests/containers $(TEST_OPTIONS)

agent: $(STAMP)  ## Pack the guest agent into dist/ballast-agent.pyz
	$(BIN)/ballast image agent dist/ballast-agent.pyz

# The same sources give the same files: what bears a time bears that of the last commit.
release: export SOURCE_DATE_EPOCH := $(shell git log -1 --format=%ct 2>/dev/null || echo 1580601600)
release: $(STAMP)  ## Build what is released into dist/, and try the wheel
	rm -rf dist build
	$(BIN)/python -m ballast.cli.manual build/man
	$(BIN)/argparse-manpage --module ballast_agent.__main__ --function make_parser \
		--prog ballast-agent --description 'the part of Ballast that runs in a guest' \
		--project-name Ballast --version "$$($(BIN)/ballast --version | cut -d ' ' -f 2)" \
		--manual-title Ballast --output build/man/ballast-agent.1
	mkdir -p build/completion/bash build/completion/zsh build/completion/fish
	_BALLAST_COMPLETE=source_bash $(BIN)/ballast >build/completion/bash/ballast
	_BALLAST_COMPLETE=source_zsh $(BIN)/ballast >build/completion/zsh/_ballast
	_BALLAST_COMPLETE=source_fish $(BIN)/ballast >build/completion/fish/ballast.fish
	$(BIN)/python -m build --outdir dist
	$(BIN)/ballast image agent dist/ballast-agent.pyz
	tar --create --sort=name --mtime=@$$SOURCE_DATE_EPOCH --owner=0 --group=0 --numeric-owner \
		--directory=build man completion | gzip --no-name >dist/ballast-manual-and-completion.tar.gz
	cd dist && sha256sum * >SHA256SUMS
	$(PYTHON) -m venv build/trial
	build/trial/bin/pip install --quiet --disable-pip-version-check dist/*.whl
	build/trial/bin/ballast --version
	build/trial/bin/ballast demo --help >/dev/null
	build/trial/bin/ballast doctor
	$(PYTHON) dist/ballast-agent.pyz --version

clean:  ## Remove what was built here; the cache of QEMU and guests stays
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
