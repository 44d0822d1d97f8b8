#!/usr/bin/env bash
# The ablations of the paper's Table 4 and Figure 4: STOP without prompts, with either half and with both, and over lists
# of N_s, α, β, η and of merged frames, each with several seeds; tables, and a picture with the seconds of a step.
#   bash scripts/ablate.sh toy                          the toy testbed: 84 trainings, 36 of them shared with
#                                                       patches_toy.sh, beside those that study_toy.sh and merge_toy.sh have
#   bash scripts/ablate.sh toy --only motions           one level of it
#   bash scripts/ablate.sh toy --time                   seconds of a step of each, in turns: minutes, nothing beside it
#   bash scripts/ablate.sh toy --picture                draws docs/pictures/ablation_toy.png of what is done
#   bash scripts/ablate.sh scripts/msrvtt.sh            a dataset, by its script, in runs/ablate/msrvtt
#   bash scripts/ablate.sh scripts/hmdb51.sh --seeds 1 --eta 1 2 4 -- --split 1 --epochs 5     flags for the script behind --
# Continues where it stopped: what is done is not done again, and an interrupted training goes on from its checkpoint.
# Where the toy study goes on on another machine, whose toy CLIP is another, it trains the defaults of a seed there, too.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
if [ "${1:-}" = toy ]; then export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE CUDA_VISIBLE_DEVICES=; fi
exec .venv/bin/python scripts/ablation/ablate.py "$@"
