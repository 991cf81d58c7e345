#!/usr/bin/env bash
# Several machines with 8 GPUs each. Run this on every one of them, with the same first three variables:
#   NODES=4 HEAD=10.0.0.1 PORT=29500 NODE=0 examples/launch/several_nodes.sh BASE MAP DOMAIN.jsonl OUTPUT
# OUTPUT must be a folder that all machines share: each process keeps its part of the recording's state in the checkpoints.
set -euo pipefail
torchrun \
    --nnodes "$NODES" --node_rank "$NODE" --nproc_per_node "${GPUS:-8}" \
    --rdzv_backend c10d --rdzv_endpoint "$HEAD:${PORT:-29500}" \
    "$(dirname "$0")/protect.py" "$@"
