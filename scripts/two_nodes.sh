#!/usr/bin/env bash
# Two nodes of one rank each on this machine, with the same rendezvous as train.slurm. They use GPUs
# 0 and 1, if there are any.
#
#   scripts/two_nodes.sh --steps 40 --out runs/two-nodes
set -uo pipefail

export NODES=2 RANKS_PER_NODE=1 HEAD=localhost:${PORT:-29500} JOB=two-nodes ADDRESS=127.0.0.1

CUDA_VISIBLE_DEVICES=0 "$(dirname "$0")/launch.sh" "$@" &
first=$!
CUDA_VISIBLE_DEVICES=1 "$(dirname "$0")/launch.sh" "$@" &
second=$!
trap 'kill -TERM $first $second; wait' TERM INT

# exit with an error if either node failed
wait $first
failed=$?
wait $second && exit $failed
