#!/usr/bin/env bash
# Runs a main program on every GPU of this machine, or on its CPU, setting up .venv first if needed; the scripts of the
# datasets end in it.
#   bash scripts/launch.sh main_task_retrieval.py --do_train ...
#   GPUS=2 bash scripts/launch.sh main_task_recognition.py --do_train ...
# GPUS is the number of processes, one a GPU (default: as many as there are GPUs, and one on a CPU).
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
python=.venv/bin/python
GPUS=${GPUS:-$("$python" -c 'import torch; print(max(1, torch.cuda.device_count()))')}

if [ "$GPUS" = 1 ]; then exec "$python" "$@"; fi
exec "$python" -m modules.runtime.launch --processes "$GPUS" "$@"
