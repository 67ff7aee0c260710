PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.installed
FP8 := .venv/.fp8
TARGET_PYTHON ?= 3.12

.PHONY: install quickstart quickstart-fast test test-portable fp8 test-fp8 test-slow lint types bench bench-gpu bench-tiny wheels bench-all story clean

quickstart: $(READY)       ## train, sample and evaluate on handwritten digits: 4 minutes on 2 CPU cores
	$(BIN)/python -m benchmarks.quickstart

quickstart-fast: $(READY)  ## the same road with 40 training steps, to see that it is open
	rm -rf runs/quickstart-fast
	$(BIN)/python -m benchmarks.quickstart --out runs/quickstart-fast --train-steps 40 --num-samples 100

install: $(READY)          ## create .venv with everything

$(READY): requirements.txt pyproject.toml
	@echo "installing into .venv: two minutes and 6 GB"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check --quiet -r requirements.txt
	$(BIN)/pip install --disable-pip-version-check --quiet --no-deps --editable .
	touch $(READY)

test: $(READY)             ## all quick tests, 5 minutes on 2 cores
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

PORTABLE := $(BIN)/python -m pytest -n 2 --dist loadfile -m "portable and not slow"
THREADED := OMP_WAIT_POLICY=passive $(PORTABLE) -k "not parallel"  # ranks have one thread each

test-portable: $(READY)    ## numbers under other instruction sets and thread counts, 3 minutes on 2 cores
	ATEN_CPU_CAPABILITY=default $(PORTABLE)
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 $(PORTABLE)
	OMP_NUM_THREADS=2 $(THREADED)
	OMP_NUM_THREADS=4 $(THREADED)

fp8: $(FP8)                ## what --precision fp8 needs

$(FP8): $(READY)
	$(BIN)/pip install --disable-pip-version-check --quiet --no-deps torchao
	touch $(FP8)

test-fp8: fp8              ## its tests
	$(BIN)/python -m pytest -m "not slow" tests/distributed/test_fp8.py

test-slow: $(READY)        ## the tests that take minutes
	$(BIN)/python -m pytest -m slow

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

bench: $(READY)            ## speed of training and sampling beside peers on this CPU: under 10 minutes on 2 cores
	$(BIN)/python -m benchmarks.training_speed --record
	$(BIN)/python -m benchmarks.sampling_rate --record

bench-gpu: fp8             ## the same on this machine's GPU: cut for 9 minutes
	PYTHON=$(BIN)/python scripts/bench_gpu.sh

bench-tiny: $(READY)       ## the road of bench-gpu with small networks, on any machine
	PYTHON=$(BIN)/python scripts/bench_gpu.sh --tiny

wheels: $(READY)           ## what bench-gpu needs beside torch, torchvision, timm and einops, for a machine without a network
	$(BIN)/pip download --disable-pip-version-check --quiet --dest wheels --no-deps --only-binary :all: \
	    --python-version $(TARGET_PYTHON) diffusers torchao tyro docstring-parser typeguard importlib-metadata zipp

bench-all: bench fp8       ## all that docs/performance.md and docs/scaling.md tell, into benchmarks/results/
	rm -rf runs/bench-quickstart
	$(BIN)/python -m benchmarks.quickstart --out runs/bench-quickstart --record
	$(BIN)/python -m benchmarks.digits_scores --samples runs/bench-quickstart/evaluation/samples-* --record
	$(BIN)/python -m benchmarks.evaluation_speed --record
	$(BIN)/python -m benchmarks.loader --record
	$(BIN)/python -m benchmarks.memory --record
	$(BIN)/python -m benchmarks.scaling --record
	$(BIN)/python -m benchmarks.restarts --record
	$(BIN)/python -m benchmarks.precision --record
	$(BIN)/python -m benchmarks.levers --record

story: $(READY)            ## the tables of docs/story.md: every step from DDPM to DiT, 43 minutes on 2 CPU cores
	$(BIN)/python -m benchmarks.story --record

clean:
	rm -rf .venv build *.egg-info
