"""A folder of videos as jobs, each for a worker process, and the report of those that failed."""

from __future__ import annotations

import argparse
import csv
import io
import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from common.errors import UserError
from common.files import lock_folder, write_whole
from dataloaders.annotations import folder_problem, raise_if_problems
from dataloaders.video.pack_index import FAILURES_FILE
from dataloaders.video_files import list_videos, no_videos
from preprocess.frames import DamagedVideo

NOT_REACHED = "not reached: a worker process died before this video's turn"
WORKER_DIED = "a worker process died while this video was under way (out of memory?)"


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
        ValueError: two videos have the same target, there is none, or a folder cannot be read.
    """
    jobs: dict[Path, Job] = {}
    for source in find_videos(input_root):
        name = source.relative_to(input_root)
        job = Job(name.as_posix(), source, output_root / name.with_suffix(suffix))
        other = jobs.setdefault(job.target, job)
        if other is not job:
            raise ValueError(f"'{other.name}' and '{job.name}' would both become '{name.with_suffix(suffix)}'")
    return sorted(jobs.values(), key=lambda job: job.name)


def find_videos(root: Path) -> list[Path]:
    """Everything named like a video in a folder and below it, as `list_videos` finds it, sorted.

    What is named like one and no file is reported later, as a video that failed.

    Raises:
        UserError: there is none, or a folder cannot be read, which may hold some.
    """
    listing = list_videos(root)
    unread = [folder_problem(root / path, "folder of videos", error) for path, error in sorted(listing.unread.items())]
    remedy = "Make that readable, or leave it out: --input_root may be a folder of links to the rest."
    raise_if_problems(f"--input_root {root}", unread, remedy)
    paths = sorted([*listing.files, *listing.no_files])
    if not paths:
        raise UserError(no_videos("--input_root", root, listing))
    return [root / path for path in paths]


def describe(error: Exception) -> str:
    """Why a video failed, in one line."""
    if isinstance(error, DamagedVideo):
        return str(error)
    return f"{type(error).__name__}: {getattr(error, 'strerror', None) or error}"


@contextmanager
def alone_in(folder: Path, doing: str) -> Iterator[None]:
    """Keep other runs from an output folder, as far as its file system has locks.

    Args:
        doing: what a run does with videos there, for the message.

    Raises:
        UserError: another run does.
        OSError: the folder cannot be written to.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(lock_folder(folder))
        except BlockingIOError:
            raise UserError(
                f"another run is {doing} videos to {folder}: wait for it, end it, or give another --output_root"
            ) from None
        yield


@contextmanager
def interrupts_ignored() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def start_pool(num_workers: int) -> ProcessPoolExecutor:
    """Processes for jobs, which end with this one."""
    return ProcessPoolExecutor(num_workers, multiprocessing.get_context("spawn"), initializer=end_with_parent)


def end_with_parent() -> None:
    """Let a worker end when its parent is killed; it would go on with what it was given, and then wait forever."""

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


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
