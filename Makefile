# Each target installs what it needs into .venv first; a second call installs nothing.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: help setup demo test check docs format lock clean

help:
	@echo "make demo    train a VAN on handwritten digits, predict image files, explain the predictions"
	@echo "make test    run the tests"
	@echo "make check   formatting, lint, types, import layers, documentation, tests"
	@echo "make docs    build the documentation site into site/"
	@echo "make format  format the code and fix lint"
	@echo "make setup   install into .venv"
	@echo "make lock    update both lock files (needs uv)"
	@echo "make clean   delete .venv, caches, runs/ and site/"

setup: $(READY)

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 13) else \
	'expected Python 3.11 to 3.13, got ' + sys.version.split()[0] + '; try make PYTHON=python3.12')"
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(READY)

demo: $(READY)
	@$(BIN)/python examples/demo.py

test: $(READY)
	$(BIN)/python -m pytest

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyrefly check
	$(BIN)/lint-imports
	@$(MAKE) --no-print-directory docs
	$(BIN)/python -m pytest

# the pages that are generated are committed; a test fails when they are out of date
docs: $(READY)
	$(BIN)/python scripts/cli_reference.py docs/cli.md
	$(BIN)/python scripts/architecture_diagram.py docs/images/architecture.svg
	$(BIN)/zensical build --clean --strict
	$(BIN)/python scripts/check_links.py site

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock:
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate \
		--extra demo --extra dev --extra explain --extra export --extra serve --extra transformers pyproject.toml -o requirements.lock
	@# for the container image: what serving needs and what builds the package, in the versions of the file above
	echo hatchling | uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
		--no-annotate --extra explain --extra export --extra serve --constraint requirements.lock \
		pyproject.toml - -o deploy/requirements.lock

clean:
	rm -rf .venv .pytest_cache .ruff_cache .import_linter_cache .hypothesis .cache runs dist site
