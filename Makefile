.PHONY: demo test lint test-slow bench clean
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin

demo: $(VENV)/.installed
	PATH="$(CURDIR)/$(BIN):$$PATH" sh .ci/demo

test: $(VENV)/.installed-dev lint
	$(BIN)/pytest -q -n auto --dist loadfile

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .

test-slow: $(VENV)/.installed-dev
	$(BIN)/pytest -q -m slow

bench: $(VENV)/.installed-dev
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[bench]"
	$(BIN)/python tests/bench/atari.py
	$(BIN)/python tests/bench/gridworld.py
	$(BIN)/python tests/bench/collect.py
	$(BIN)/python tests/bench/vpn.py --envs 1 64
	$(BIN)/python tests/bench/pixelcnn.py --sizes 28
	$(BIN)/python tests/bench/images.py

clean:
	rm -rf $(VENV)

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || python3 -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml
	test -x $(BIN)/python || python3 -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@ $(VENV)/.installed
