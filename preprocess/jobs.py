"""A folder of videos as jobs, each for a worker process, and the report of those that failed."""

from __future__ import annotations

import argparse
import csv
import io
import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from common.errors import UserError
from common.files import write_whole
from dataloaders.video.pack_index import FAILURES_FILE
from dataloaders.video_files import VIDEO_SUFFIXES
from preprocess.frames import DamagedVideo

NOT_REACHED = "not reached: a worker process died before this video's turn"


def to_rate(text: str) -> Fraction:
    """A number as it is given on the command line, also as a fraction: a flag's `type`.

    Raises:
        argparse.ArgumentTypeError: if it is none.
    """
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number, such as 3, 0.5 or 30000/1001") from None


@dataclass(frozen=True)
class Job:
    """One video to compress; `name` is its path relative to the input root."""

    name: str
    source: Path
    target: Path


def plan(input_root: Path, output_root: Path, suffix: str = ".mp4") -> list[Job]:
    """All videos under `input_root` with where they go, sorted by name.

    Args:
        suffix: what the target has in place of the source's own.

    Raises:
        ValueError: two videos have the same target, or there is none.
    """
    jobs: dict[Path, Job] = {}
    for source in find_videos(input_root):
        name = source.relative_to(input_root)
        job = Job(name.as_posix(), source, output_root / name.with_suffix(suffix))
        other = jobs.setdefault(job.target, job)
        if other is not job:
            raise ValueError(f"'{other.name}' and '{job.name}' would both become '{name.with_suffix(suffix)}'")
    if not jobs:
        raise ValueError(f"no videos under '{input_root}' ({' '.join(sorted(VIDEO_SUFFIXES))})")
    return sorted(jobs.values(), key=lambda job: job.name)


def find_videos(root: Path) -> Iterator[Path]:
    """Everything named like a video, also in linked folders; a folder named like one is reported later."""
    for folder, folders, files in os.walk(root, followlinks=True):
        here = Path(folder).resolve()
        folders[:] = [name for name in folders if not here.is_relative_to((here / name).resolve())]  # no link loops
        for name in sorted(folders + files):
            if Path(name).suffix.lower() in VIDEO_SUFFIXES and not name.startswith("."):
                yield Path(folder, name)


def describe(error: Exception) -> str:
    """Why a video failed, in one line."""
    if isinstance(error, DamagedVideo):
        return str(error)
    return f"{type(error).__name__}: {getattr(error, 'strerror', None) or error}"


@contextmanager
def interrupts_ignored() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def stop_workers(pool: ProcessPoolExecutor) -> None:
    """End the workers at once: what they have not finished has a temporary name."""
    pool.shutdown(wait=False, cancel_futures=True)
    for worker in multiprocessing.active_children():
        worker.terminate()
        worker.join()


def report(failures: dict[str, str], counts: Counter, output_root: Path) -> None:
    """Print the counts and the failures, and write these to the output folder.

    Raises:
        UserError: they cannot be written; the list of an earlier run is as it was.
    """
    # A name may hold bytes that are not UTF-8.
    rows = [
        [text.encode("utf-8", "backslashreplace").decode() for text in row]
        for row in sorted(failures.items())
        if row[1] != NOT_REACHED
    ]
    print(", ".join(f"{number} {what}" for what, number in counts.items()))
    for name, reason in rows:
        print(f"failed: {name}: {reason}")
    table = io.StringIO(newline="")
    csv.writer(table).writerows([["video", "reason"], *rows])
    path = output_root / FAILURES_FILE
    try:
        write_whole(path, lambda file: file.write(table.getvalue().encode()))
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error.strerror}. Make room on the disk or mend it; the same command continues"
        ) from error
