PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.installed
FP8 := .venv/.fp8
DOCS := .venv/.docs
TARGET_PYTHON ?= 3.12

.PHONY: help install quickstart quickstart-fast test test-misuse test-portable test-wheel test-slow fp8 test-fp8 \
        format lint types docs bench bench-gpu bench-tiny bench-all wheels story house clean

help:                      ## this list
	@grep -hE '^[a-z0-9-]+:.*## ' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 18

install: $(READY)          ## create .venv with everything: two minutes, 6 GB

$(READY): requirements.txt pyproject.toml
	@echo "installing into .venv: two minutes and 6 GB"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check --quiet -r requirements.txt
	$(BIN)/pip install --disable-pip-version-check --quiet --no-deps --editable .
	touch $(READY)

quickstart: $(READY)       ## train, sample and evaluate on handwritten digits: 4 minutes on 2 cores
	$(BIN)/python -m benchmarks.quickstart

quickstart-fast: $(READY)  ## the same with 40 training steps, to see that it works
	rm -rf runs/quickstart-fast
	$(BIN)/python -m benchmarks.quickstart --out runs/quickstart-fast --train-steps 40 --num-samples 100

test: $(READY)             ## the quick tests: ten minutes on 2 cores
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow" --durations 30

PORTABLE := OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 2 --dist loadfile -m "portable and not slow"

test-portable: $(READY)    ## numbers under other instruction sets and thread counts: 3 minutes
	ATEN_CPU_CAPABILITY=default OMP_NUM_THREADS=2 $(PORTABLE)
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 OMP_NUM_THREADS=4 $(PORTABLE)

test-misuse: $(READY)      ## 1,200 wrong or hostile uses of all commands: under 10 minutes on 2 cores
	PYTHONPATH=tests:. $(BIN)/python -m misuse

test-wheel: $(READY)       ## build the package, install it without the repository, use it: 3 minutes
	$(BIN)/python -m pytest tests/package

test-slow: $(READY)        ## the tests that take minutes
	$(BIN)/python -m pytest -m slow

fp8: $(FP8)                ## install what --precision fp8 needs

$(FP8): $(READY)
	$(BIN)/pip install --disable-pip-version-check --quiet --no-deps torchao
	touch $(FP8)

test-fp8: fp8              ## the tests of --precision fp8
	$(BIN)/python -m pytest -m "not slow" tests/distributed/test_fp8.py

format: $(READY)           ## format the code
	$(BIN)/ruff check --select I --fix .
	$(BIN)/ruff format .

lint: $(READY)             ## check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)            ## check types
	$(BIN)/mypy

bench: $(READY)            ## speed of training and sampling beside peers on this CPU: 10 minutes
	$(BIN)/python -m benchmarks.training_speed --record
	$(BIN)/python -m benchmarks.sampling_rate --record

bench-gpu: fp8             ## the same on this machine's GPU: 9 minutes
	PYTHON=$(BIN)/python scripts/bench_gpu.sh

bench-tiny: $(READY)       ## the commands of bench-gpu with small networks, on any machine
	PYTHON=$(BIN)/python scripts/bench_gpu.sh --tiny

bench-all: bench           ## every figure of docs/performance.md that has a script
	rm -rf runs/bench-quickstart
	$(BIN)/python -m benchmarks.quickstart --out runs/bench-quickstart --record
	$(BIN)/python -m benchmarks.digits_scores --samples runs/bench-quickstart/evaluation/samples-* --record
	$(BIN)/python -m benchmarks.memory --record

wheels: $(READY)           ## packages that bench-gpu needs on a machine without a network
	$(BIN)/pip download --disable-pip-version-check --quiet --dest wheels --no-deps --only-binary :all: \
	    --python-version $(TARGET_PYTHON) diffusers torchao tyro docstring-parser typeguard importlib-metadata zipp

story: $(READY)            ## the tables of docs/story.md, from DDPM to DiT: 43 minutes on 2 cores
	$(BIN)/python -m benchmarks.story --record

docs: $(DOCS)              ## build the site in build/site; broken links fail
	$(BIN)/python -m mkdocs build --quiet

$(DOCS): $(READY)
	$(BIN)/pip install --disable-pip-version-check --quiet mkdocs-material "mkdocstrings[python]"
	touch $(DOCS)

house:                     ## size and density of the code, floors of its imports
	$(PYTHON) scripts/measure_house.py

clean:                     ## remove .venv and build files
	rm -rf .venv build dist *.egg-info
