#!/usr/bin/env bash
# A job on the Hub's own machines: 8 H200 on one of them, the adapter pushed when it is done (`hf auth login` first).
#   examples/launch/hf_jobs.sh PACKAGE BASE MAP ORGANISATION/DATA ORGANISATION/ADAPTER
# PACKAGE is what pip installs: "git+https://..." of this repository, or its name on an index. DATA is a data set with a file
# domain.jsonl, a ``text`` a line. `DRY=--dry-run` prints what would be submitted; `FLAVOR=l4x4` takes another machine.
set -euo pipefail
package="$1" base="$2" importance="$3" data="$4" adapter="$5"
run='pip install -q "$PACKAGE" && hf download "$DATA" domain.jsonl --repo-type dataset --local-dir /tmp/data
torchrun --standalone --nproc_per_node gpu /launch/protect.py "$BASE" "$MAP" /tmp/data/domain.jsonl /tmp/out --bf16 true
hf upload "$ADAPTER" /tmp/out'
hf jobs run ${DRY:-} --flavor "${FLAVOR:-h200x8}" --timeout "${TIMEOUT:-4h}" --secrets HF_TOKEN \
    --env PACKAGE="$package" --env BASE="$base" --env MAP="$importance" --env DATA="$data" --env ADAPTER="$adapter" \
    --volume "$(cd "$(dirname "$0")" && pwd):/launch" \
    pytorch/pytorch:latest bash -euc "$run"
