# Everything a stranger types. Each target sets itself up; a second call installs nothing.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: help setup demo test check format lock clean

help:
	@echo "make demo    train a VAN on handwritten digits, then classify pictures"
	@echo "make test    run the tests"
	@echo "make check   format, lint, types, floors, tests"
	@echo "make setup   only install, into .venv"
	@echo "make lock    remake both files of locked packages (needs uv)"

setup: $(READY)

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 13) else \
	'Python 3.11 to 3.13 is needed, this is ' + sys.version.split()[0] + '; try make PYTHON=python3.12')"
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
	$(BIN)/python -m pytest

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock:
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate \
		--extra demo --extra dev --extra explain --extra export --extra serve --extra transformers pyproject.toml -o requirements.lock
	@# for the image: what serves, and what builds the package there; in the versions of the file above
	echo hatchling | uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
		--no-annotate --extra explain --extra export --extra serve --constraint requirements.lock \
		pyproject.toml - -o deploy/requirements.lock

clean:
	rm -rf .venv .pytest_cache .ruff_cache .import_linter_cache .hypothesis runs dist
