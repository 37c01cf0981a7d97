# Everything that is done with clusterfs more than once. `make setup` prepares a Debian 12 machine.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SEED ?= 0
MINUTES ?= 10
SOURCES := clusterfs dlm tests bench scripts

export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help setup check test demo simulate soak bench transcripts clean

help: ## show what there is
	@sed -n 's/^\([a-z]*\):[^#]*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

setup: $(VENV)/.ready ## install what is needed: apt packages that are missing, and a venv

$(VENV)/.ready: pyproject.toml scripts/setup scripts/sqlite $(wildcard clusterfs/*/_*.[ch])
	PYTHON=$(PYTHON) scripts/setup $(VENV)

check: setup ## format, lint, types, layers, unit and property tests
	ruff format --check $(SOURCES)
	ruff check $(SOURCES)
	mypy --strict clusterfs dlm
	lint-imports
	pytest -q tests/unit tests/property tests/test_tidy.py

test: setup ## the whole test suite, with real mounts; needs root and /dev/fuse
	scripts/test

demo: setup ## three nodes on this machine do what the filesystem is for
	python scripts/demo.py

simulate: setup ## the seeded simulations: SEED=n
	CLUSTERFS_SEED=$(SEED) pytest -q tests/simulation tests/crash

soak: setup ## every small store workload cut everywhere, then kill nodes and break hosts, links and etcd at random, then new seeds for the locks and nonsense on every port: MINUTES=n SEED=n
	CLUSTERFS_SEED=$(SEED) CLUSTERFS_EXHAUSTIVE=1 pytest -q --timeout=0 tests/crash
	CLUSTERFS_SEED=$(SEED) CLUSTERFS_SOAK_MINUTES=$(MINUTES) pytest -q -s --timeout=0 tests/mount/test_kill.py -k for_as_long_as_asked
	CLUSTERFS_SEED=$(SEED) CLUSTERFS_SOAK_MINUTES=$(MINUTES) pytest -q -s --timeout=0 tests/mount/test_file_locks_failures.py -k storm
	CLUSTERFS_SEED=$(SEED) CLUSTERFS_PROGRAMS=$$(( $(MINUTES) * 6 )) CLUSTERFS_STEPS=400 pytest -q --timeout=0 tests/mount/test_differential.py
	pytest -q --timeout=0 --hypothesis-profile search --hypothesis-seed $(SEED) tests/property
	python -m dlm.sim --minutes $(MINUTES) --ranges
	python -m dlm.sim --minutes $(MINUTES) --short
	CLUSTERFS_SEED=$(SEED) CLUSTERFS_FUZZ_ROUNDS=1000000 CLUSTERFS_FUZZ_S=$$(( $(MINUTES) * 30 )) pytest -q --timeout=0 tests/fuzz tests/mount/test_fuzz.py
	CLUSTERFS_SEED=$(SEED) CLUSTERFS_FAULT_MINUTES=$(MINUTES) pytest -q -s --timeout=0 tests/faults/test_rounds.py tests/faults/test_rounds_of_five.py
	python -m dlm.sim --minutes $(MINUTES) --storm
	python -m dlm.sim --minutes $(MINUTES)

bench: setup ## the tables of docs/performance.md
	python -m bench
	python -m bench dlm
	python -m bench qemu

transcripts: setup ## rewrite the expected effects in tests/transcripts; review the diff
	CLUSTERFS_REWRITE_TRANSCRIPTS=1 pytest -q tests/unit tests/property -k transcript

clean: ## remove what can be made again
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find clusterfs dlm -name '*.so' -delete
