"""How the suite is divided over processes; tests/conftest.py tells pytest."""

import os
from collections.abc import Iterable
from pathlib import Path

MAX_PROCESSES = 8  # of tests, some of which hold a CLIP of full size
FEW_FILES = 4  # fewer are not worth the seconds in which another process imports torch
# those that take longest: begun last, they would be waited for
LONG_FILES = (
    "test_interruption.py",
    "test_many_processes.py",
    "test_program.py",
    "test_stop.py",
    "test_bad_videos.py",
    "test_benchmark.py",
    "test_comparison.py",
)


def num_processes(arguments: Iterable[str]) -> int:
    """Processes for the tests that pytest is asked for: one a core; 0, for none but its own, where files are few.

    Args:
        arguments: files and folders, at any depth of which files are counted, and tests of a file (`FILE::NAME`).
    """
    paths = [Path(argument.split("::")[0]) for argument in arguments]
    files = sum(len(list(path.rglob("test_*.py"))) if path.is_dir() else 1 for path in paths)
    processes = min(num_cores(), files, MAX_PROCESSES)
    return processes if processes > 1 and files >= FEW_FILES else 0


def num_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
