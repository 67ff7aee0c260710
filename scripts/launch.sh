#!/usr/bin/env bash
# One node's part of a training on several nodes: to be started once on each of them, with the same flags of train.py.
#
#   NODES=4 HEAD=node001:29500 JOB=xl2 scripts/launch.sh --preset imagenet-256 --data latents/imagenet-256 --out runs/xl2
#
# NODES           how many there are
# HEAD            where they meet: host and free port of one of them
# JOB             a name, the same on all of them
# RANKS_PER_NODE  one for each GPU, unless given
# RESTARTS        how often all ranks are started again after one has failed; 3 unless given
# ADDRESS         by which the others reach this node; its host name unless given
set -euo pipefail

exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes "$NODES" --nproc-per-node "${RANKS_PER_NODE:-gpu}" --max-restarts "${RESTARTS:-3}" \
    --rdzv-backend c10d --rdzv-endpoint "$HEAD" --rdzv-id "$JOB" ${ADDRESS:+--local-addr "$ADDRESS"} \
    "$(dirname "$0")/../train.py" "$@"
