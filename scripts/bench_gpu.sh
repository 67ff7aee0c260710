#!/usr/bin/env bash
# Speed of training and sampling, compared with peers, on this machine's GPU. It takes at most nine
# minutes.
#
#   make bench-gpu                     where .venv exists or can be created
#   scripts/bench_gpu.sh [--tiny]      with another python (PYTHON=...), which needs torch,
#                                      torchvision, timm and einops
#
# For a machine without a network, `make wheels TARGET_PYTHON=3.12` on another machine collects the
# other packages in wheels/; they are used from there if it exists. Results go to
# benchmarks/results/. Set DIT_COMMIT in a copy without git, and they record it. The most important
# rows come first, and rows skipped for lack of time are listed.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}

if [ -d wheels ]; then
    packages=$(mktemp -d)
    "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-index --no-deps \
        --target "$packages" wheels/*.whl
    export PYTHONPATH="$PWD:$packages${PYTHONPATH:+:$PYTHONPATH}"
fi

if [ "${1:-}" = --tiny ]; then
    "$PYTHON" -m benchmarks.training_speed --tiny --rounds 1
    "$PYTHON" -m benchmarks.sampling_rate --tiny --rounds 1
else
    "$PYTHON" -c "import torch; assert torch.cuda.is_available(), 'no GPU here: use make bench'"
    "$PYTHON" -m benchmarks.training_speed --budget 260 --rounds 3 --record
    "$PYTHON" -m benchmarks.sampling_rate --budget 190 --rounds 2 --record
fi
