#!/usr/bin/env bash
# Asks whether the patches that STOP chooses on the toy videos follow motion: trains it with other α, N_s and
# normalisation of M on both levels, three seeds each, at the demo's budget, measures where the chosen patches lie before
# and after training, and prints the tables of docs/figures.md.
#   bash scripts/patches_toy.sh                  everything: some hours on two cores, two trainings at a time
#   bash scripts/patches_toy.sh --only seed1     trainings whose name holds a word
#   bash scripts/patches_toy.sh --quick          all of it with a step of some of them on a few videos, elsewhere
# Continues where it stopped: a training that docs/results/patches.json holds is done, one that was interrupted goes on
# from its checkpoint. What is measured is measured on the trainings under runs/study/, where those of study_toy.sh and
# `ablate.sh toy` with the same settings are taken as they are.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE CUDA_VISIBLE_DEVICES=
study=(.venv/bin/python scripts/studies/patches.py)
"${study[@]}" "$@"
case " $* " in *" --quick "* | *" --table "* | *" --measure "* | *" --help "*) exit ;; esac
"${study[@]}" --measure
exec "${study[@]}" --table
