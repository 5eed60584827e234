# Every target sets up what it needs in $(VENV). TORCH names the PyTorch that a new $(VENV) gets: 2.10 or later, any build.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
DIST ?= dist
BIN = $(VENV)/bin
NATIVE = -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh'
CSRC = $(shell find csrc $(NATIVE))
CPP = $(CSRC) .ci/compat_probe.cu $(shell find tests $(NATIVE))

.PHONY: demo test test-rest test-all faults fuzz soak inspect lint format docs docs-links doctor bench wheel clean

demo: $(VENV)/installed  ## trains with plain self-training and with the density loss, and writes a report
	$(BIN)/python examples/demo.py --out demo_out

test: $(VENV)/installed  ## the tests that matter to users, one process per core; 5 minutes on two cores
	$(BIN)/python -m pytest -n auto --dist loadfile -m core

test-rest: $(VENV)/installed  ## all other tests: emulated kernels, compiled backends, benchmarks, the project's own tools (PART="0 3": a third)
	$(BIN)/python -m pytest -n auto --dist loadfile -m "not core" $(if $(PART),--part $(PART))

test-all: test test-rest

faults: $(VENV)/installed  ## plants faults in copies of the CUDA kernels; the emulator must find each (minutes; PART="0 3": a third)
	cd tests && $(abspath $(BIN))/python -m kernels emulator --faults $(if $(PART),--part $(PART))

fuzz: $(VENV)/installed  ## calls every operator with hostile arguments, under AddressSanitizer (2 minutes; FUZZ="--seconds 3600 --op knn_topk")
	cd tests && $(abspath $(BIN))/python -m kernels fuzz --mode address --seconds 120 $(FUZZ)

soak: $(VENV)/installed  ## runs 20,000 steps of the loss under adverse conditions and checks each; minutes
	cd tests && $(abspath $(BIN))/python -m soak.run

inspect: $(VENV)/installed  ## compiles the CUDA kernels with nvcc: registers, spills, instructions
	$(BIN)/python -m pip install -qq nvidia-cuda-cuobjdump==13.2.51 nvidia-cuda-nvdisasm==13.2.51
	$(BIN)/python .ci/inspect_kernels $(INSPECT)

doctor: $(VENV)/installed  ## shows what is installed, which code runs and why, and checks it
	$(BIN)/python -m dgcl_ops.doctor

bench: $(VENV)/installed  ## all benchmarks, against the alternatives and the aims; a quarter of an hour
	$(BIN)/python benchmarks/suite.py --threads 2

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy
	@$(BIN)/clang-format --dry-run -Werror $(CPP)

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	@$(BIN)/clang-format -i $(CPP)

docs: $(VENV)/docs  ## the documentation site, without the network: build/docs/index.html
	$(BIN)/python -m sphinx -E -q -W --keep-going docs build/docs

docs-links: $(VENV)/docs  ## checks the site's links to other sites
	$(BIN)/python -m sphinx -q -b linkcheck docs build/docs-links

wheel: $(VENV)/installed  ## one wheel for every Python and PyTorch, and its sdist: dist/ (DIST="folder")
	rm -rf build/wheel
	DGCL_OPS_EXTENSION=1 $(BIN)/python -m build --no-isolation --outdir build/wheel
	PATH="$(abspath $(BIN)):$$PATH" .ci/repair_wheel build/wheel/*.whl "$(DIST)"
	mv build/wheel/*.tar.gz "$(DIST)"

$(VENV)/torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --progress-bar off "$(TORCH)"
	@touch $@

$(VENV)/installed: $(VENV)/torch setup.py csrc/cuda/toolkit.py pyproject.toml $(CSRC)
	@echo "compiling the extension and installing the tools: a minute or two, more with CUDA kernels"
	DGCL_OPS_EXTENSION=1 $(BIN)/python -m pip install -qq --editable ".[dev]" --group wheel
	@touch $@

$(VENV)/docs: $(VENV)/installed pyproject.toml
	$(BIN)/python -m pip install -qq --group docs
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info dgcl_ops/*.so demo_out
