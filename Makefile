# Every target does its own set-up in .venv, from the locks in requirements/. `make` alone lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

PIP := -m pip --disable-pip-version-check --quiet --no-input
READY := .venv/.ready
LOWEST := .venv-lowest/.ready
COMPILE := .venv-uv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --custom-compile-command "make lock"
TEST :=
N := 20
APART := --ignore tests/memory --ignore tests/containers --ignore tests/fuzz  # suites with targets of their own
ARGS :=
FUZZ_S := 120
SOAK_S := 14400
CHAOS_S := 1800
# RERUN=1: what failed runs again, and goes on if that was luck. By hand it fails plainly.
PYTEST := $(if $(RERUN),tests.kit.rerun --,pytest)
TWO := -n 2 --dist loadfile --no-loadscope-reorder  # two workers; in the order of tests/kit/order.py
THREE := $(subst -n 2,-n 3,$(TWO))  # for fast tests, which wait more than they work

.PHONY: help
help:  ## List the targets
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 26

.PHONY: demo
demo: $(READY)  ## Show the main job on real processes, in under a minute
	@.venv/bin/python tests/cluster/demo.py

.PHONY: test
test: $(READY)  ## Run the fast tests, those on a shared cluster included
	.venv/bin/python -m $(PYTEST) tests $(APART) $(THREE) -m "not destructive and not slow" $(ARGS)

.PHONY: test-cluster
test-cluster: $(READY)  ## Run the tests that kill, corrupt and restart clusters, and other slow ones
	.venv/bin/python -m $(PYTEST) tests $(APART) $(TWO) -m "destructive or slow" $(ARGS)

.PHONY: test-memory
test-memory: $(READY)  ## Search the memory of nexus and keepers for keys (as root, or with CAP_SYS_PTRACE)
	.venv/bin/python -m pytest tests/memory $(ARGS)

.PHONY: test-containers
test-containers: $(READY)  ## Run the tests on images and on docker-compose.yml (Docker engine, `docker compose` v2)
	.venv/bin/python -m $(PYTEST) tests/containers $(ARGS)

.PHONY: fuzz
fuzz: $(READY)  ## Feed every decoder with hostile input, on new examples, for FUZZ_S=120 seconds
	.venv/bin/python -m tests.fuzz $(FUZZ_S)

.PHONY: soak
soak: export START := exec
soak: export TEST_PROFILE := soak
soak: export TEST_SEED := $(shell od -An -N4 -tu4 /dev/urandom | tr -d ' ')
soak: $(READY)  ## Fuzz for SOAK_S=14400 s, run clusters and the model on a new seed, fault every call, chaos for CHAOS_S=1800 s
	@echo "soak: TEST_SEED=$(TEST_SEED)"
	.venv/bin/python -m tests.fuzz $(SOAK_S)
	.venv/bin/python -m pytest tests $(APART) -m "cluster or destructive or slow" --ignore-glob "*/test_sweeps*" $(ARGS)
	.venv/bin/python -m pytest tests/nexus/keys/operation/test_model.py $(ARGS)
	SWEEP=all TEST_REQUIRE=strace .venv/bin/python -m pytest tests/cluster/test_sweeps*.py -s $(ARGS)
	CHAOS_S=$(CHAOS_S) TEST_REQUIRE=docker .venv/bin/python -m pytest tests/containers/test_chaos.py -s $(ARGS)

.PHONY: test-sdk-lowest
test-sdk-lowest: $(LOWEST)  ## Run the tests of the SDK's wheel on the lowest versions that it allows
	.venv-lowest/bin/python -m $(PYTEST) tests/client $(TWO) $(ARGS)

.PHONY: flake
flake: $(READY)  ## Run TEST=… N=20 times, until it fails
	@test -n "$(TEST)" || { echo "flake: want TEST=tests/…, as pytest names it" >&2; exit 2; }
	@for (( run = 1; run <= $(N); run++ )); do \
		echo "flake: run $$run of $(N)"; \
		.venv/bin/python -m pytest -q -x "$(TEST)" $(ARGS) || { echo "flake: failed in run $$run" >&2; exit 1; }; \
	done

.PHONY: lint
lint: $(READY)  ## Check style, types, import contracts, generated code and the list of flaky tests
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports --no-logo
	.venv/bin/python proto/generate.py --check
	.venv/bin/python -m pytest -q tests/test_flakes.py

.PHONY: bench
bench: $(READY)  ## Measure speed and size, each beside its baseline; AGAINST=COMMIT: beside the program of before
	.venv/bin/python -m tests.bench $(if $(AGAINST),--against $(AGAINST)) $(ARGS)

.PHONY: generate
generate: $(READY)  ## Write the code that the contracts in proto/ give, and the tables of pages
	.venv/bin/python proto/generate.py
	.venv/bin/python docs/generate.py

.PHONY: lock
lock: .venv-uv/.ready  ## Resolve requirements/*.in anew; UPGRADE=--upgrade takes the newest versions
	$(COMPILE) $(UPGRADE) requirements/dev.in -o requirements/dev.lock
	$(COMPILE) $(UPGRADE) requirements/server.in -c requirements/dev.lock -o requirements/server.lock
	$(COMPILE) $(UPGRADE) requirements/build.in -c requirements/dev.lock -o requirements/build.lock
	$(COMPILE) requirements/uv.in -o requirements/uv.lock
	$(COMPILE) $(UPGRADE) --resolution lowest-direct client/pyproject.toml requirements/sdk-lowest.in \
		-o requirements/sdk-lowest.lock

.PHONY: clean
clean:  ## Remove what the other targets made
	rm -rf .venv .venv-* build dist client/dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

# The first Python that is new enough, into a new virtual environment.
define MAKE_VENV
@for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
		echo "set-up: $(@D) with $$($$python --version)"; \
		rm -rf $(@D); \
		"$$python" -m venv $(@D) || { rm -rf $(@D); exit 1; }; \
		exit 0; \
	fi; \
done; \
echo "set-up: found no Python 3.11 or newer as python3 or python3.11 … python3.14 in PATH" >&2; exit 1
endef

.venv/.made .venv-lowest/.made .venv-uv/.made:
	$(MAKE_VENV)
	@touch $@

.venv/.locked: .venv/.made requirements/dev.lock
	@echo "set-up: installing requirements/dev.lock"
	@.venv/bin/python $(PIP) install --require-hashes -r requirements/dev.lock
	@touch $@

$(READY): .venv/.locked pyproject.toml client/pyproject.toml
	@.venv/bin/python $(PIP) install --no-deps --no-build-isolation -e client -e .
	@touch $@

$(LOWEST): .venv-lowest/.made requirements/sdk-lowest.lock client/pyproject.toml $(wildcard client/shardhold/*.py)
	@echo "set-up: installing requirements/sdk-lowest.lock and the wheel of the SDK"
	@.venv-lowest/bin/python $(PIP) install --require-hashes -r requirements/sdk-lowest.lock
	@.venv-lowest/bin/python $(PIP) install --no-deps --no-build-isolation --force-reinstall ./client
	@touch $@

.venv-uv/.ready: .venv-uv/.made requirements/uv.lock
	@.venv-uv/bin/python $(PIP) install --require-hashes -r requirements/uv.lock
	@touch $@
