#!/usr/bin/env bash
# Runs the whole test suite, setting up .venv first if needed. Arguments go to pytest.
#   bash scripts/test.sh
#   bash scripts/test.sh tests/test_stop.py -k padding
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
exec .venv/bin/python -m pytest "$@"
