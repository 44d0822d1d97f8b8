#!/usr/bin/env bash
# Tries long and at random what the tests try once, and prints a table: runs that are killed and continued, videos with
# damaged bytes, thousands of decodes in one worker, several numbers of processes.
#   bash scripts/soak.sh                    everything
#   bash scripts/soak.sh --quick            a tenth of it, at most 5 minutes on 2 cores
#   bash scripts/soak.sh --seed 7           other random choices; the seed is printed
# Leaves runs/soak/soak.json; exits with 1 if anything did not hold.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE CUDA_VISIBLE_DEVICES=
exec .venv/bin/python tests/soak/soak.py "$@"
