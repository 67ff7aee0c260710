#!/usr/bin/env bash
# One node's part of a training on several nodes. Start it once on each of them, with the same flags
# of train.py.
#
#   NODES=4 HEAD=node001:29500 JOB=xl2 scripts/launch.sh \
#       --preset imagenet-256 --data latents/imagenet-256 --out runs/xl2
#
# NODES           number of nodes
# HEAD            rendezvous: host and free port of one of the nodes
# JOB             a name, the same on all nodes
# RANKS_PER_NODE  default: one for each GPU
# RESTARTS        how often all ranks are restarted after one has failed; default: 3
# ADDRESS         this node's address for the others; default: its host name
set -euo pipefail

exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes "$NODES" --nproc-per-node "${RANKS_PER_NODE:-gpu}" --max-restarts "${RESTARTS:-3}" \
    --rdzv-backend c10d --rdzv-endpoint "$HEAD" --rdzv-id "$JOB" \
    ${ADDRESS:+--local-addr "$ADDRESS"} \
    "$(dirname "$0")/../train.py" "$@"
