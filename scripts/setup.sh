#!/usr/bin/env bash
# Makes .venv with the pinned requirements; does nothing when it is up to date.
#   bash scripts/setup.sh
# PYTHON names the interpreter to build it with (default: python3; 3.10 or newer is needed).
set -euo pipefail
cd "$(dirname "$0")/.."

stamp=.venv/.requirements
if [ -f "$stamp" ] && cmp -s requirements.txt "$stamp" && .venv/bin/python -c '' 2>/dev/null; then
  exit 0
fi

python=${PYTHON:-python3}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
  echo "setup: Python 3.10 or newer is needed; found $("$python" --version 2>&1 || true). Set PYTHON to one." >&2
  exit 1
fi
echo "setup: installing the requirements into .venv (5 to 6 GB with torch's CUDA libraries)"
"$python" -m venv --clear .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
cp requirements.txt "$stamp"
