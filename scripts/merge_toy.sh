#!/usr/bin/env bash
# Trains STOP with frames merged and prompts made before chosen layers, and with fewer and with more frames, on both
# levels of the toy testbed, five seeds; then prints the tables of docs/merging.md.
#   bash scripts/merge_toy.sh                    everything: 160 trainings, 4 to 5 hours on two quiet cores, two at a time
#   bash scripts/merge_toy.sh --only seed1       trainings whose name holds a word; all of one seed take about an hour
#   bash scripts/merge_toy.sh --time             seconds and FLOPs of a step of each, in turns: minutes, nothing beside it
#   bash scripts/merge_toy.sh --picture          draws docs/pictures/merging_toy.png of what is done
#   bash scripts/merge_toy.sh --quick            all of it with a step of some of them on a few videos, elsewhere
# Continues where it stopped: a training that docs/results/study_merging.json or study_toy.json holds is done, and one that
# was interrupted goes on from its checkpoint. It goes through all settings with one seed before it begins the next, the
# most telling first. CLIPs, videos and packs of frames are kept under runs/toy/, trainings under runs/study/.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE CUDA_VISIBLE_DEVICES=
exec .venv/bin/python scripts/studies/merging.py "$@"
