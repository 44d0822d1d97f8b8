#!/usr/bin/env bash
# Everything worth measuring on a machine with a CUDA GPU, without a network, in at most 9 minutes: the tests that need
# one (bf16, fp16, --compile, NCCL, --deterministic, an interruption and its resumption, every method), the benchmark's
# CUDA column with the share of the GPU's peak, and a trace of a training step. Without a GPU it says so and exits 1.
#   bash scripts/gpu_check.sh                             leaves runs/gpu_check.json and runs/gpu_check.txt
#   bash scripts/gpu_check.sh --batch_size 32             of what is measured; for a GPU of less than 80 GB
#   PYTHON=python3.12 bash scripts/gpu_check.sh           where there is no .venv: a Python with the requirements
#   bash scripts/gpu_check.sh --minutes 5 --output runs/short.json
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
if [ ! -x "$python" ]; then python=${PYTHON:-python3}; fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
  echo "gpu_check: Python 3.10 or newer is needed; found $("$python" --version 2>&1 || true). Set PYTHON to one." >&2
  exit 1
fi
exec "$python" scripts/gpu/check.py "$@"
