#!/usr/bin/env bash
# Speed of training and sampling beside peers, on the GPU of this machine; cut for nine minutes.
#
#   make bench-gpu                           where .venv is, or can be made
#   scripts/bench_gpu.sh [--tiny]            with the python at hand (PYTHON=...), which needs torch, torchvision, timm, einops
#
# Where no package can be installed, `make wheels TARGET_PYTHON=3.12` on another machine collects the rest in wheels/, which is
# used from there if it exists. Results go to benchmarks/results/; they tell the commit DIT_COMMIT where it is set, as for a copy.
# What matters most comes first, and rows for which there is no time are named.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
if [ -d wheels ]; then
    carried=$(mktemp -d)
    "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --target "$carried" wheels/*.whl
    export PYTHONPATH="$PWD:$carried${PYTHONPATH:+:$PYTHONPATH}"
fi
if [ "${1:-}" = --tiny ]; then
    "$PYTHON" -m benchmarks.training_speed --tiny --rounds 1
    "$PYTHON" -m benchmarks.sampling_rate --tiny --rounds 1
else
    "$PYTHON" -c "import torch; assert torch.cuda.is_available(), 'this machine has no GPU: make bench is for its CPU'"
    "$PYTHON" -m benchmarks.training_speed --budget 260 --rounds 3 --record
    "$PYTHON" -m benchmarks.sampling_rate --budget 190 --rounds 2 --record
fi
