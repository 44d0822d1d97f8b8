#!/usr/bin/env bash
# How fast STOP is beside the CLIP that it wraps, how it grows with the number of frames, and whether the loader and
# the evaluation keep up. Prints tables and leaves benchmark.json, a flat object.
#   bash scripts/benchmark.sh                       everything; 10 to 15 minutes on 2 cores
#   bash scripts/benchmark.sh --quick               smaller and fewer, nothing counted; 2 minutes
#   bash scripts/benchmark.sh --count               only what a training step asks of a GPU; seconds, without one
#   bash scripts/benchmark.sh --methods vop,lora    only speed and memory of these methods, or of all, at their defaults
#   bash scripts/benchmark.sh --videos DIR          the loader on these videos instead of made ones
#   bash scripts/benchmark.sh --ranks 100000        similarity and ranks of this many pairs; takes minutes
# On a CUDA GPU it measures in bf16 there: --batch_size 128 by default, --compile for floor and STOP both.
# Nothing else should be running: ratios are taken in turns, but memory and cores are shared.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
exec .venv/bin/python scripts/benchmark/benchmark.py "$@"
