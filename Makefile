.PHONY: help demo test lint test-slow bench gpu gpu-rehearse gpu-wheels gallery clean
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.installed  ## run every part of both labs once, in minutes of CPU
	PATH="$(CURDIR)/$(BIN):$$PATH" sh .ci/demo

test: $(VENV)/.installed-dev lint  ## lint, and run the tests that take seconds each
	$(BIN)/pytest -q -n auto --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.installed-dev  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy

test-slow: $(VENV)/.installed-dev  ## run the longer tests: learning to the end, kills, every preset
	$(BIN)/pytest -q -m slow

bench: $(VENV)/.installed-dev  ## measure speed on this machine, half an hour at most; KEEP=--keep adds it to the history
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[bench]"
	$(BIN)/python tests/bench/all.py $(KEEP)

gpu:  ## check and measure a GPU, in ten minutes: runs/gpu/results.csv
	$(if $(wildcard $(BIN)/python),$(BIN)/python,python3) tests/bench/gpu.py

gpu-rehearse: $(VENV)/.installed-dev  ## the same, small, on a GPU that is not there
	$(BIN)/python tests/bench/gpu.py --rehearse --out runs/gpu/rehearsal.csv

gpu-wheels: $(VENV)/.installed  ## what a machine with torch alone lacks for make gpu, for Python 3.12 on Linux: runs/gpu-wheels
	$(BIN)/pip download --quiet --disable-pip-version-check --no-deps --dest runs/gpu-wheels --python-version 3.12 \
	  --only-binary :all: --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 --platform any \
	  -r tests/bench/gpu_parts/wheels.txt
	$(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir runs/gpu-wheels antlr4-python3-runtime==4.9.3
	du -sh runs/gpu-wheels

gallery: $(VENV)/.installed-dev  ## make README's pictures anew, by the code as it is; trains what they show
	$(BIN)/python tests/gallery.py

clean:  ## remove the virtual environment
	rm -rf $(VENV)

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || python3 -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml
	test -x $(BIN)/python || python3 -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@ $(VENV)/.installed
