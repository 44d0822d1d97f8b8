#!/usr/bin/env bash
# Finds moments in your own videos, with plain CLIP or any training of this project; docs/search.md says more.
#   bash scripts/search.sh index FOLDER…                       again: what is new or changed
#   bash scripts/search.sh search "a dog jumps into the water" --not "a swimming pool"
#   bash scripts/search.sh serve                               a page for the browser on this machine
#   bash scripts/search.sh info | verify                       what the index holds, and whether it is whole
# Past a million windows: --index faiss; past one machine: index --ray ADDRESS (requirements-scale.txt).
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh >&2
exec .venv/bin/python -m search "$@"
