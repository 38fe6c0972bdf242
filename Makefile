# Two commands set everything up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# `--until picture` needs the light part alone, so the first picture does not wait for torch and Ray to install.
LIGHT := $(VENV)/.light
TRAIN := $(VENV)/.train
DEV := $(VENV)/.dev
QUICK := not slow and not waymo_oracle and not s3_gateway

.PHONY: demo test test-long test-s3 test-waymo claim claim-controls claim-real lint format clean

demo: STARTED := $(shell date +%s)
demo: $(LIGHT)
	$(BIN)/spot-ray demo --until picture --started $(STARTED)
	$(MAKE) --no-print-directory $(TRAIN)
	$(BIN)/spot-ray demo --started $(STARTED)

# What needs no Ray runs on several cores; tests with Ray have the machine for themselves.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/unit tests/golden -m "$(QUICK)" --numprocesses auto --maxprocesses 4
	$(BIN)/python -m pytest tests -m "$(QUICK)" --ignore tests/unit --ignore tests/golden

test-long: $(DEV)
	$(BIN)/python -m pytest tests -m slow --timeout 3000

# The tests of object storage against a real one: needs Debian's ceph-mon, ceph-osd, radosgw and ceph-common.
test-s3: $(DEV)
	$(BIN)/python -m pytest tests -m s3_gateway

# Compares with Waymo's own package, which the test installs in a virtual environment of its own, .venv-waymo (2.8 GB).
test-waymo: $(DEV)
	$(BIN)/python -m pytest tests -m waymo_oracle --timeout 3000

# Does pre-training help a detector that has few labels? All three keep what is done in claim/ and go on from there.
claim: $(TRAIN)
	$(BIN)/python benchmarks/claim.py

claim-controls: $(TRAIN)
	$(BIN)/python benchmarks/claim_controls.py

claim-real: $(TRAIN)
	$(BIN)/python benchmarks/claim_real.py

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell spot_ray jobs tests benchmarks *.md

format: $(DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(LIGHT): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	touch $@

$(TRAIN): $(LIGHT)
	$(PIP) torch==2.13.0
	$(PIP) --editable '.[train]'
	touch $@

$(DEV): $(TRAIN)
	$(PIP) --editable '.[train,dev]'
	touch $@

clean:
	rm -rf $(VENV) demo
