# `make demo` renders, converts, trains and tests a small data set; `make test` passes the tests; `make campaign` kills
# runs, breaks clusters and damages input in full, and prints its counts. All of them install first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

CAMPAIGN := $(addprefix tests/test_,killed_runs.py checkpoints.py hostile_input.py cluster.py half_precision.py growth.py \
	download.py norb_format.py convert.py import_weights.py)

.PHONY: demo test campaign install clean

install: $(VENV)/installed

$(VENV)/installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

demo: install
	PYTHON=$(BIN)/python ./examples/demo.sh

test: install
	$(BIN)/python -m pytest

campaign: install
	$(BIN)/python -m pytest -n 0 -m "not slow" --durations=10 $(CAMPAIGN)

clean:
	rm -rf $(VENV)
