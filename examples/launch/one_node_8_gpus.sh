#!/usr/bin/env bash
# One machine with 8 GPUs, one process a GPU: both stages of a recipe, then the evaluation.
#   examples/launch/one_node_8_gpus.sh RECIPE.yaml OUTPUT
set -euo pipefail
recipe="$1" output="$2"
launch=(torchrun --standalone --nproc_per_node "${GPUS:-8}" -m alora_trainer.cli)

"${launch[@]}" record "$recipe" --output_dir "$output"
"${launch[@]}" tune "$recipe" --method alora --output_dir "$output"
"${launch[@]}" eval "$recipe" --method alora --output_dir "$output"
