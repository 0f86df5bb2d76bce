# Each target sets up what it needs in .venv; nothing has to be installed first but Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
RUN := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(VENV)/bin/python -m
ARGS ?=

EXTRAS_demo := training,local
EXTRAS_test := training,local,test
EXTRAS_lint := training,local,test,lint

.PHONY: help demo test soak lint format bench clean

help:
	@echo "make demo    train a model, stream synthetic payments through it, show the alerts"
	@echo "make test    all tests but the long ones"
	@echo "make soak    the long versions of the recovery and bad-input tests"
	@echo "make lint    ruff and mypy"
	@echo "make bench   the benchmarks"
	@echo "ARGS=...     is handed to the command behind a target: make demo ARGS='--seconds 60'"

demo: $(VENV)/.installed-demo
	$(VENV)/bin/python -m stream demo $(ARGS)

test: $(VENV)/.installed-test
	$(RUN) pytest -m "not soak" -n 2 --dist loadfile $(ARGS)

soak: $(VENV)/.installed-test
	$(RUN) pytest -m soak -s --timeout=3600 $(ARGS)

bench: $(VENV)/.installed-test
	$(RUN) benchmarks $(ARGS)

lint: $(VENV)/.installed-lint
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(VENV)/.installed-lint
	$(VENV)/bin/ruff check --fix-only .
	$(VENV)/bin/ruff format .

clean:
	rm -rf $(VENV) build dist lepton.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# The stamp is newer than what it was made from once an installation has succeeded.
$(VENV)/.installed-%: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Lepton needs Python 3.11 or newer; set PYTHON")'
	@echo "Installing into $(VENV); PyTorch is large, so the first time takes some minutes"
	test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS_$*)]'
	$(VENV)/bin/python -m stream compile
	@touch $@
