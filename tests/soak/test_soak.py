"""The soak test's trials in small: runs that are killed and continued, damaged videos, memory, numbers of processes."""

import json

import pytest

from helpers.launching import ENVIRONMENT, run_to_end

pytestmark = pytest.mark.slow


def test_everything_that_the_soak_test_tries_holds(tmp_path):
    output = tmp_path / "soak.json"
    environment = ENVIRONMENT | {"OMP_WAIT_POLICY": "PASSIVE"}
    finished = run_to_end("tests/soak/soak.py", "--quick", "--output", output, environment=environment, timeout=1200)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    rows = json.loads(output.read_text())["rows"]
    assert rows and all(row["held"] == row["tried"] > 0 for row in rows), finished.stdout
