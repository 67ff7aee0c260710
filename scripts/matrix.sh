#!/usr/bin/env bash
# A part of the tests under several versions of Python, with the oldest and the newest libraries.
#
#   scripts/matrix.sh                                        all eight, each in a new environment
#   scripts/matrix.sh --python 3.13 --resolution highest     one of them
#
# Needs uv. An environment takes 6 GB and is removed afterwards; downloads stay in uv's cache.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHONS="3.10 3.11 3.12 3.13"
RESOLUTIONS="highest lowest-direct"
TESTS="tests/package tests/config tests/models tests/diffusion/test_samplers.py tests/api
       tests/export tests/runs/formats tests/commands/play tests/commands/test_folder_road.py"
while [ $# -gt 0 ]; do
    case "$1" in
        --python) PYTHONS=$2 ;;
        --resolution) RESOLUTIONS=$2 ;;
        *) sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 2 ;;
    esac
    shift 2
done

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
failed=()
for python in $PYTHONS; do
    for resolution in $RESOLUTIONS; do
        name="python $python, $resolution"
        echo "== $name"
        uv venv --quiet --clear --python "$python" "$folder/env"
        # the rest of the package is tested by make test
        if uv pip install --quiet --python "$folder/env" --resolution "$resolution" \
            -e ".[text,data,eval,report,digits,play,dev]" &&
            "$folder/env/bin/python" -m pytest -q -m "not slow" -n 2 $TESTS; then
            echo "passed: $name"
        else
            failed+=("$name")
        fi
        rm -rf "$folder/env"
    done
done
if [ ${#failed[@]} -gt 0 ]; then
    printf 'failed: %s\n' "${failed[@]}"
    exit 1
fi
