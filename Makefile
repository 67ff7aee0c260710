PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.installed

.PHONY: install quickstart quickstart-fast test test-slow lint types bench story clean

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

test: $(READY)             ## all quick tests, about 8 minutes on 2 cores
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-slow: $(READY)        ## the tests that take minutes
	$(BIN)/python -m pytest -m slow

lint: $(READY)
	$(BIN)/ruff check .

types: $(READY)
	$(BIN)/mypy

bench: $(READY)            ## measured speed and quality, into benchmarks/results/
	$(BIN)/python -m benchmarks.training_speed --record
	$(BIN)/python -m benchmarks.levers --record
	rm -rf runs/bench-quickstart
	$(BIN)/python -m benchmarks.quickstart --out runs/bench-quickstart --record
	$(BIN)/python -m benchmarks.digits_scores --samples runs/bench-quickstart/evaluation/samples-* --record
	$(BIN)/python -m benchmarks.evaluation_speed --record
	$(BIN)/python -m benchmarks.loader --record
	$(BIN)/python -m benchmarks.memory --record
	$(BIN)/python -m benchmarks.scaling --record
	$(BIN)/python -m benchmarks.restarts --record

story: $(READY)            ## the tables of docs/story.md: every step from DDPM to DiT, 43 minutes on 2 CPU cores
	$(BIN)/python -m benchmarks.story --record

clean:
	rm -rf .venv build *.egg-info
