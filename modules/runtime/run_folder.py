"""What a run leaves in its output folder."""

import contextlib
import csv
import io
import json
import logging
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

import torch

from common.errors import UserError
from common.files import csv_text, lock_folder, write_whole
from dataloaders.bad_videos import SKIPPED, SKIPPED_COLUMNS, SkippedVideo
from dataloaders.missing_videos import MISSING_VIDEOS

PACKAGES = ("torch", "torchvision", "open_clip_torch", "numpy", "decord", "opencv-python-headless")
LAST, BEST, RESULTS, CONFIG = "last.pt", "best.pt", "results.json", "config.json"
METRICS, DROPPED = "metrics.jsonl", "dropped_videos.csv"
INTERRUPTED = "interrupted.json"
LOCK_PATIENCE = 30.0  # seconds for the processes of a run that was killed to end

logger = logging.getLogger("stop")
file_logger = logging.getLogger("stop-file")  # for log.txt alone: what the screen has in another form
file_logger.propagate = False
file_logger.addHandler(logging.NullHandler())


class LogFile(logging.FileHandler):
    """``log.txt``. Several processes may add to it, a record at a time."""

    def __init__(self, folder: Path):
        """folder: of the run."""
        super().__init__(folder / "log.txt", encoding="utf-8", errors="backslashreplace")  # a path may hold any bytes

    def handleError(self, record: logging.LogRecord) -> None:
        """A full disk is said once, by what cannot go on without it; not after that, by what can."""


class RunFolder:
    """Files of a run. Only the main process writes; the others add their errors to ``log.txt`` and do nothing else."""

    def __init__(self, path: Path, is_main: bool):
        """path: made if it is not there."""
        self.path = path
        self.is_main = is_main
        self.suffix = ""  # put behind the names of what is written whole; for an evaluation beside a training
        self._board = None
        self._first_step: int | None = None  # of this process's part of the run; None for the whole
        if is_main:
            make_folder(path, "--output_dir")

    def start_logging(self) -> None:
        """Send the log to ``log.txt`` and the terminal; of other processes warnings to this and errors to both."""
        logger.setLevel(logging.INFO if self.is_main else logging.WARNING)
        logger.propagate = False
        handlers: list[logging.Handler] = [logging.StreamHandler()]
        if self.is_main:
            handlers.append(LogFile(self.path))
        else:
            with contextlib.suppress(OSError):  # on another machine, where there may be no such folder
                self.path.mkdir(parents=True, exist_ok=True)
                handlers.append(LogFile(self.path))
                handlers[-1].setLevel(logging.ERROR)
        for handler in handlers:
            handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        _set_handlers(logger, handlers)
        _set_handlers(file_logger, [*handlers[1:], logging.NullHandler()])

    def write_config(self, settings: Mapping[str, Any], prepared: Mapping[str, Any]) -> None:
        """``config.json``: every setting, how videos were prepared, package versions, the git commit, the machine."""
        versions = {name: _version(name) for name in PACKAGES} | {"python": platform.python_version()}
        content = {
            "settings": settings,
            "prepared": prepared,
            "versions": versions,
            "git_commit": git_commit(),
            "machine": describe_machine(),
        }
        self.write_json(CONFIG, content)

    def read_config(self) -> dict[str, Any]:
        """What ``config.json`` holds; nothing where there is none that can be read."""
        with contextlib.suppress(OSError, ValueError):
            content = json.loads((self.path / self._in_full(CONFIG)).read_text(encoding="utf-8"))
            return content if isinstance(content, dict) else {}
        return {}

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """A JSON file, complete or not there."""
        self.write_text(name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """A text file, complete or not there."""
        self.write_bytes(name, text.encode("utf-8", "backslashreplace"))  # a path may hold bytes that are not UTF-8

    def write_bytes(self, name: str, content: bytes) -> None:
        """A file, complete or not there."""
        self._write(self._in_full(name), lambda file: file.write(content))

    def log_metrics(self, kind: str, step: int, values: Mapping[str, float | None]) -> None:
        """Add a line to ``metrics.jsonl`` and points to TensorBoard.

        Lines hold nothing that depends on the clock: a run that was interrupted leaves those of one that was not.
        """
        if not self.is_main:
            return
        with self._no_space(METRICS), (self.path / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        for name, value in values.items():
            if value is not None:
                self._tensorboard().add_scalar(f"{kind}/{name}", value, step)

    def log_speed(self, step: int, samples_per_second: float) -> None:
        """Speed goes to TensorBoard only."""
        if self.is_main:
            self._tensorboard().add_scalar("train/samples_per_second", samples_per_second, step)

    def forget_after(self, step: int, epochs_evaluated: int) -> None:
        """Take back what a run logged after the checkpoint that it is resumed from."""
        self._first_step = step + 1
        path = self.path / METRICS
        if not self.is_main or not path.exists():
            return
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue  # the last line of a run that was killed while it wrote; its step is logged again
            if entry["step"] <= step and not (entry["kind"] == "eval" and entry["epoch"] > epochs_evaluated):
                kept.append(line + "\n")
        self._write(METRICS, lambda file: file.write("".join(kept).encode()))

    def clear(self) -> None:
        """Remove what an earlier run left that this one would add to."""
        if self.is_main:
            # the checkpoint first: without it nothing of the rest is taken for part of a run
            for name in (LAST, METRICS, SKIPPED, DROPPED, MISSING_VIDEOS, INTERRUPTED, RESULTS, BEST):
                (self.path / name).unlink(missing_ok=True)
            shutil.rmtree(self.path / "tensorboard", ignore_errors=True)

    def add_skipped(self, step: int, videos: Sequence[SkippedVideo]) -> None:
        """Add lines to ``bad_videos.csv``, on the disk when this returns; reads that are there already stay single.

        A read is told by epoch, sample and attempt: when it is repeated, the videos may lie in another folder.

        Args:
            step: that they were drawn for, from 1.
        """
        if not self.is_main:
            return
        rows = {}
        for at, v in [*self.read_skipped(), *((step, video) for video in videos)]:
            rows.setdefault((v.epoch, v.sample_id, v.attempt), (at, v))
        self.write_table(
            SKIPPED,
            SKIPPED_COLUMNS,
            [[at, v.epoch + 1, v.sample_id, v.attempt, v.path, v.reason] for at, v in rows.values()],
        )

    def read_skipped(self) -> list[tuple[int, SkippedVideo]]:
        """What ``bad_videos.csv`` holds: videos with the step, from 1, that they were drawn for.

        Raises:
            UserError: if it is another file.
        """
        rows = self._read_table(SKIPPED)
        if any(tuple(row) != SKIPPED_COLUMNS or not row["step"] for row in rows):
            raise UserError(
                f"{self.path / SKIPPED} is not the list that a run keeps, perhaps one of preprocess/check_videos.py: "
                "move it elsewhere"
            )
        return [
            (int(step), SkippedVideo(int(epoch) - 1, sample, int(attempt), video, reason))
            for step, epoch, sample, attempt, video, reason in (row.values() for row in rows)
        ]

    def write_dropped(self, videos: Mapping[str, str]) -> None:
        """``dropped_videos.csv``: the videos that evaluation left out, by id, with the reason."""
        self.write_table(DROPPED, ["video", "reason"], [[video, reason] for video, reason in videos.items()])

    def read_dropped(self) -> dict[str, str]:
        """What ``dropped_videos.csv`` holds."""
        return {row["video"]: row["reason"] for row in self._read_table(DROPPED)}

    def mark_interrupted(self, signal_name: str | None) -> None:
        """``interrupted.json``: the run was told to stop and can be continued."""
        self.write_json(INTERRUPTED, {"signal": signal_name, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")})

    def remove(self, name: str) -> None:
        """Remove a file that an earlier run left, if there is one."""
        if self.is_main:
            (self.path / self._in_full(name)).unlink(missing_ok=True)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other runs from writing files of these names; ends with the process, however that ends.

        Raises:
            UserError: if another one writes here and does not end soon.
        """
        with contextlib.ExitStack() as stack:
            if self.is_main:
                try:
                    locked = stack.enter_context(lock_folder(self.path, LOCK_PATIENCE, f".lock{self.suffix}"))
                except BlockingIOError:
                    raise UserError(
                        f"another run is writing to {self.path}: wait for it, end it, or give another --output_dir"
                    ) from None
                if not locked:
                    logger.warning("%s cannot be locked: see to it that no other run writes there", self.path)
            yield

    def write_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A CSV file with a header, complete or not there."""
        self.write_text(name, csv_text([columns, *rows]))

    def _in_full(self, name: str) -> str:
        """A file's name with the suffix in it."""
        stem, dot, ending = name.partition(".")
        return f"{stem}{self.suffix}{dot}{ending}"

    def _read_table(self, name: str) -> list[dict[str, str]]:
        path = self.path / name
        if not self.is_main or not path.exists():
            return []
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def save_checkpoint(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a checkpoint; the one before stays until the new one is complete and on the disk.

        What was logged up to it is on the disk before it is.

        Raises:
            UserError: if there is no room for it.
        """
        if not self.is_main:
            return
        buffer = io.BytesIO()  # torch's own errors about a file do not say that the disk is full
        torch.save(content, buffer)
        if self.has(METRICS):
            with self._no_space(METRICS), (self.path / METRICS).open("rb") as file:
                os.fsync(file.fileno())
        self._write(name, lambda file: file.write(buffer.getbuffer()))

    def load_checkpoint(self, name: str) -> dict[str, Any] | None:
        """A checkpoint of this folder; None if there is none or this is not the main process."""
        return load_checkpoint(self.path / name) if self.is_main and self.has(name) else None

    def has(self, name: str) -> bool:
        """Whether the folder holds a file."""
        return (self.path / name).exists()

    def close(self) -> None:
        """Finish TensorBoard's file."""
        if self._board is not None:
            self._board.close()

    def _tensorboard(self):
        if self._board is None:
            from torch.utils.tensorboard import SummaryWriter  # slow to import, and not needed to evaluate

            self._board = SummaryWriter(str(self.path / "tensorboard"), purge_step=self._first_step)
        return self._board

    def _write(self, name: str, write: Callable[[BinaryIO], Any]) -> None:
        """Write to a temporary file, flush it to the disk, then rename it."""
        if not self.is_main:
            return
        with self._no_space(name):
            write_whole(self.path / name, write)

    @contextlib.contextmanager
    def _no_space(self, name: str) -> Iterator[None]:
        """Around writing a file: say what it means that this failed."""
        try:
            yield
        except OSError as error:
            kept = f"{LAST} is whole, that of the last save" if self.has(LAST) else f"There is no {LAST} yet"
            raise UserError(
                f"{self.path / name} cannot be written: {error.strerror}. {kept}. "
                "Make room on the disk or mend it, then give the same command again to continue."
            ) from error


def _set_handlers(of: logging.Logger, handlers: Sequence[logging.Handler]) -> None:
    for handler in of.handlers[:]:
        of.removeHandler(handler)
        handler.close()
    for handler in handlers:
        of.addHandler(handler)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint without running any code that may be in it.

    Raises:
        UserError: if the file is missing, damaged or no checkpoint of this program.
    """
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zipfile, pickle and torch each raise their own
        raise UserError(f"{path} cannot be read as a checkpoint: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict) or not {"model", "method", "identity"} <= content.keys():
        raise UserError(f"{path} is not a checkpoint of this program: expected entries 'model', 'method', 'identity'")
    return content


def make_folder(path: Path, flag: str) -> None:
    """Make a folder that a flag names, if it is not there, where something can be written to.

    Raises:
        UserError: if it cannot be made or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(f"[Errno 13] Permission denied: '{path}'")
    except OSError as error:
        raise UserError(f"{flag} {path}: not a folder that can be written to ({error})") from error


def git_commit() -> str | None:
    """The commit of this code, with "-dirty" if files differ from it; None outside a git checkout.

    What was measured, docs/results/, is no code: studies write it while they go on.
    """
    root = Path(__file__).resolve().parents[2]

    def git(*words: str) -> str:
        command = ["git", "--no-optional-locks", *words]
        return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)docs/results")
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("-dirty" if changed else "")


def cpu_name() -> str:
    """The model of the processor, as far as the system tells it."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()


def describe_machine() -> str:
    """The processor, how many of its cores this process may use, and the GPU if there is one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{cpu_name()}, {cores} cores{gpu}"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
