#!/usr/bin/env bash
# Runs the test suite, setting up .venv first if needed. Arguments go to pytest.
#   bash scripts/test.sh                                  all but the slow ones, at most 6 minutes on two cores
#   bash scripts/test.sh -m slow                          the slow ones
#   bash scripts/test.sh tests/methods -k padding
#   bash scripts/test.sh -n 4                             in 4 processes, rather than one a core
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
exec .venv/bin/python -m pytest "$@"
