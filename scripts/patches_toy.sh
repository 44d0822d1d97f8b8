#!/usr/bin/env bash
# Asks whether the patches that STOP chooses on the toy videos follow motion: trains it with other α, normalisation of M,
# N^s and N_s on both levels, three seeds each, at the demo's budget, measures where the chosen patches lie before and
# after training, and prints the tables of docs/figures.md.
#   bash scripts/patches_toy.sh                  everything: some hours on two cores, two trainings at a time
#   bash scripts/patches_toy.sh --only seed1     trainings whose name holds a word
#   bash scripts/patches_toy.sh --quick          all of it with a step of some of them on a few videos, elsewhere
# Continues where it stopped: a training that docs/results/patches.json holds is done and measured, one that was
# interrupted goes on from its checkpoint, and a training of study_toy.sh or `ablate.sh toy` with the same settings that
# lies under runs/study/ is measured as it is. On another machine, whose toy CLIP is another, the defaults of a seed that
# goes on there are trained there, too. scripts/docs_tables.py puts the tables into docs/figures.md.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE CUDA_VISIBLE_DEVICES=
exec .venv/bin/python scripts/studies/patches.py "$@"
