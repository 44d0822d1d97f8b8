"""The soak test's trials in small: runs that are killed and continued, damaged videos, memory, numbers of processes."""

import json
import os
import subprocess
import sys

import pytest

from helpers.paths import ROOT

pytestmark = pytest.mark.slow


def test_everything_that_the_soak_test_tries_holds(tmp_path):
    output = tmp_path / "soak.json"
    finished = subprocess.run(
        [sys.executable, "scripts/soak.py", "--quick", "--output", str(output)],
        cwd=ROOT,
        env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    rows = json.loads(output.read_text())["rows"]
    assert rows and all(row["held"] == row["tried"] > 0 for row in rows), finished.stdout
