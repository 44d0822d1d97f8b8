#!/usr/bin/env bash
# Trains every method, and three controls of STOP, on both levels of the toy testbed: the same steps and batches, the best
# of the same three rates, three seeds; STOP, CLIP4Clip and the controls also on a second CLIP. Prints one table.
#   bash scripts/compare_toy.sh                           everything: says how many trainings and hours, two at a time
#   bash scripts/compare_toy.sh --methods stop clip4clip  some of the rows
#   bash scripts/compare_toy.sh --quick                   two steps of each on a few videos, elsewhere, in a minute
#   bash scripts/compare_toy.sh --time                    seconds of a step of each, in turns: minutes, nothing beside it
#   bash scripts/compare_toy.sh --picture                 draws docs/pictures/compare_toy.png of what is done
# Continues where it stopped: a training that docs/results/compare_toy.json holds is done, and one that was interrupted
# goes on from its checkpoint. CLIPs, videos and packs of frames are kept under runs/toy/, trainings under
# runs/comparison/. scripts/docs_tables.py puts the table into docs/method.md.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE CUDA_VISIBLE_DEVICES=
exec .venv/bin/python scripts/studies/comparison.py "$@"
