"""Starting programs in processes of their own, and waiting for what they do."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from helpers.paths import ROOT

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}  # of every run: a thread a process, and no GPU
RETRIEVAL = "main_task_retrieval.py"


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Processes started within this are ended by Ctrl-C, as one that is started from a terminal is.

    A job that a shell without job control puts in the background ignores SIGINT, and so do all the processes that it
    starts: under `bash scripts/test.sh &` a program would not be what it is at a terminal.
    """
    # a handler does not outlive exec: the process has the signal's default
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def under_torchrun(processes: int) -> list[str]:
    """The words between Python and a program that start it in several processes by torchrun."""
    return ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]


def start(*words: object, environment: dict[str, str] | None = None, **options: Any) -> subprocess.Popen:
    """Start Python, as from a terminal, in the repository's folder.

    Args:
        words: what follows `python` in the command.
        environment: variables beside or in place of the inherited ones.
        options: of `subprocess.Popen`; without them all that is printed comes as text by the process's stdout.
    """
    options = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True} | options
    with interruptible():
        return subprocess.Popen([sys.executable, *map(str, words)], env=os.environ | (environment or {}), **options)


def run_to_end(
    *words: object, environment: dict[str, str] | None = None, timeout: float | None = None
) -> subprocess.CompletedProcess:
    """Run Python in the repository's folder to its end, with stdout and stderr as text.

    Args:
        words, environment: those of `start`.
        timeout: seconds after which it is killed and `subprocess.TimeoutExpired` raised.
    """
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=ROOT,
        env=os.environ | (environment or {}),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def start_training(
    flags: list[str], output_dir: Path, *more: str, processes: int = 1, **environment: str
) -> subprocess.Popen:
    """Start the retrieval program in a process, or under torchrun in several."""
    launcher = under_torchrun(processes) if processes > 1 else []
    words = [*launcher, RETRIEVAL, *flags, "--output_dir", output_dir, *more]
    return start(*words, environment=ENVIRONMENT | environment)


def launch(processes: int, *command: object, **environment: str) -> subprocess.CompletedProcess:
    """Run a command on gloo processes, one or several, under torchrun to its end."""
    return run_to_end(*under_torchrun(processes), *command, environment=ENVIRONMENT | environment, timeout=300)


def torchrun(
    processes: int, flags: list[str], output_dir: Path, *more: str, program: str = RETRIEVAL, **environment: str
) -> subprocess.CompletedProcess:
    """Run a program on gloo processes, one or several, under torchrun to its end."""
    return launch(processes, program, *flags, "--output_dir", output_dir, *more, **environment)


def run_code(code: str) -> str:
    """What some code, run by a Python of its own, prints on stdout.

    Raises:
        AssertionError: if it fails.
    """
    finished = run_to_end("-c", code)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def wait_for(condition: Callable[[], object], process: subprocess.Popen, seconds: float = 90) -> None:
    """Wait until something holds while a process runs.

    Raises:
        AssertionError: with what the process has printed, if it ends or `seconds` pass before that.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.02)
