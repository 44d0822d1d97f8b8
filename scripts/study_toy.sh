#!/usr/bin/env bash
# Trains STOP's open choices against their alternatives on both levels of the toy testbed, three seeds each, at the
# demo's budget, and the curve of accuracy over frames; then prints the tables of docs/method.md.
#   bash scripts/study_toy.sh                    everything: some hours on two cores, two trainings at a time
#   bash scripts/study_toy.sh --only scope       trainings whose name holds a word
#   bash scripts/study_toy.sh --quick            a step of some of them on a few videos, elsewhere
# Continues where it stopped: a training that docs/results/study_toy.json holds is done, and one that was interrupted goes
# on from its checkpoint. CLIPs, videos and packs of frames are kept under runs/toy/, trainings under runs/study/.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE CUDA_VISIBLE_DEVICES=
exec .venv/bin/python scripts/studies/choices.py "$@"
