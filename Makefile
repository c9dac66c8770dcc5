# `make demo` renders, converts, trains and tests a small data set; `make test` passes the tests; `make test-backends`
# those of the layers and networks on JAX and PyTorch; `make campaign` the tests that take longest: it kills runs, breaks
# clusters, damages input, varies cases, and prints its counts; `make lint` checks types, format and style, `make format`
# fixes the last two; `make docs` builds the site, `make notebooks` executes the notebooks. All install first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# What runs on every Keras backend.
BACKEND_TESTS := $(addprefix tests/test_,em_routing.py vb_routing.py heinsen_routing.py heinsen_vectors.py \
  heinsen_vector_layers.py inverted_attention.py attention_layers.py self_routing.py dynamic_routing.py layers.py models.py \
  attention_network.py finite_routing.py routing_health.py conv_capsules.py decoder.py any_backend.py \
  accelerator_benchmark.py attacks.py weights.py notebooks.py)

.PHONY: demo test test-backends test-jax test-torch campaign lint format docs notebooks install clean

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
	$(BIN)/python -m pytest -m "campaign and not slow"

test-backends: test-jax test-torch

test-jax test-torch: test-%: $(VENV)-%/installed
	KERAS_BACKEND=$* $(VENV)-$*/bin/python -m pytest $(BACKEND_TESTS)

$(VENV)-%/installed: requirements-%.txt requirements-backends.txt
	$(PYTHON) -m venv $(VENV)-$*
	$(VENV)-$*/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-$*.txt
	touch $@

# The type checker reads the types of NumPy and others where they are installed.
lint: $(VENV)-lint/installed $(VENV)/installed
	$(VENV)-lint/bin/ruff check .
	$(VENV)-lint/bin/ruff format --check .
	$(VENV)-lint/bin/mypy --python-executable $(BIN)/python

format: $(VENV)-lint/installed
	$(VENV)-lint/bin/ruff check --fix .
	$(VENV)-lint/bin/ruff format .

$(VENV)-lint/installed: requirements-lint.txt
	$(PYTHON) -m venv $(VENV)-lint
	$(VENV)-lint/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-lint.txt
	touch $@

docs: $(VENV)-docs/installed
	NO_MKDOCS_2_WARNING=1 $(VENV)-docs/bin/mkdocs build --quiet

$(VENV)-docs/installed: requirements-docs.txt
	$(PYTHON) -m venv $(VENV)-docs
	$(VENV)-docs/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-docs.txt
	touch $@

notebooks: $(VENV)/notebooks
	$(BIN)/python examples/notebooks/execute.py

$(VENV)/notebooks: $(VENV)/installed requirements-notebooks.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-notebooks.txt
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-jax $(VENV)-torch $(VENV)-lint $(VENV)-docs
