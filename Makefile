# Every target sets up what it needs in $(VENV). TORCH names the PyTorch that a new $(VENV) gets: 2.13 or later, any build.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
BIN = $(VENV)/bin
CSRC = $(shell find csrc -name '*.cpp' -o -name '*.h')

.PHONY: demo test lint format doctor bench wheel clean

demo: $(VENV)/installed  ## the main job: plain self-training against the density loss, with a report to look at
	$(BIN)/python examples/demo.py --out demo_out

test: $(VENV)/installed  ## all tests
	$(BIN)/python -m pytest

doctor: $(VENV)/installed  ## what is installed, which code runs and why, self-check
	$(BIN)/python -m dgcl_ops.doctor

bench: $(VENV)/installed  ## search against its alternatives, and one step of the loss against the published one
	$(BIN)/python benchmarks/knn_bench.py
	$(BIN)/python benchmarks/loss_bench.py

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CSRC)

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CSRC)

wheel: $(VENV)/installed  ## dist/*.whl and dist/*.tar.gz
	$(BIN)/python -m build --no-isolation

$(VENV)/torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --progress-bar off "$(TORCH)"
	@touch $@

$(VENV)/installed: $(VENV)/torch setup.py pyproject.toml $(CSRC)
	$(BIN)/python -m pip install -qq --editable ".[dev]"
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info dgcl_ops/*.so demo_out
