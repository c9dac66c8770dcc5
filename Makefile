# `make demo` renders, converts, trains and tests a small data set; `make test` passes the tests. Both install first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test install clean

install: $(VENV)/installed

$(VENV)/installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

demo: install
	PYTHON=$(BIN)/python ./examples/demo.sh

test: install
	$(BIN)/python -m pytest

clean:
	rm -rf $(VENV)
