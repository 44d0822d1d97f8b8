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
    if (found := _status("VmHWM")) is not None:
        return found
    unit = 1 if sys.platform == "darwin" else 2**10  # bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def anonymous_mb() -> float:
    """The memory that this process has resident now without the files that it has mapped, in MiB.

    Raises:
        RuntimeError: where the system is not Linux.
    """
    if (found := _status("RssAnon")) is None:
        raise RuntimeError(f"{STATUS} does not say how much memory is anonymous: Linux is needed")
    return found


def _status(name: str) -> float | None:
    """MiB of what Linux says of this process under a name; None where nothing does."""
    if STATUS.is_file():
        for line in STATUS.read_text(encoding="utf-8").splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) / 2**10  # KiB
    return None
