"""The memory of a process is its own."""

import subprocess
import sys

from common.memory import peak_resident_mb
from helpers.paths import ROOT

SAYS = "from common.memory import peak_resident_mb; held = bytes([1]) * ({0} << 20); print(peak_resident_mb())"


def of_a_child(megabytes):
    command = [sys.executable, "-c", SAYS.format(megabytes)]
    return float(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)


def test_what_a_process_held_is_counted_and_what_its_parent_held_is_not():
    held = bytes([1]) * (200 << 20)
    small, large = of_a_child(1), of_a_child(100)
    assert 95 < large - small < 105
    assert small < 100 < len(held) >> 20 <= peak_resident_mb()
