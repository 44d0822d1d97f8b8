"""How much memory a process has held."""

import resource
import sys
from pathlib import Path

STATUS = Path("/proc/self/status")


def peak_resident_mb() -> float:
    """The most memory that this process has had resident, in MiB, mapped files among it.

    Linux's own count of this program is read where there is one: `getrusage` also counts what the process that started
    it held, so that it says of a small program, started by a large one, what the large one had.
    """
    if STATUS.is_file():
        for line in STATUS.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**10  # KiB
    unit = 1 if sys.platform == "darwin" else 2**10  # bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
